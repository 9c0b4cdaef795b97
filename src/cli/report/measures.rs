//! What is measured of each file: the arguments that a user would give, and
//! what the result depends on.

use std::ffi::OsString;
use std::path::Path;

use serde_json::{Value, json};

use super::make::{Recipe, Target};
use super::work::Work;
use crate::cli::bench::TestArgs;
use crate::report::Made;

/// A measure that this program takes when it is called so.
pub(super) struct Measure {
    pub(super) cell: String,
    pub(super) key: Value,
    pub(super) arguments: Vec<OsString>,
}

impl Work<'_> {
    /// All measures of a file, in the order in which they are taken. Those of
    /// tasks are called by what the task holds, whatever its name and place.
    pub(super) fn measures(&self, target: &Target, made: &Made) -> Vec<Measure> {
        let args = self.args;
        let path = || OsString::from(&target.path);
        let source = OsString::from(&args.src);
        let is_source = matches!(target.recipe, Recipe::Source);
        let digest = &self.inputs.source.digest;
        let base = (!is_source).then_some((args.src.as_path(), digest.as_str()));
        let mut all = Vec::new();

        all.push(Measure {
            cell: format!("{}.perplexity", target.name),
            ..self.perplexity("perplexity", (&target.path, made), base)
        });

        for (task, file) in args.tasks.iter().zip(&self.inputs.tasks) {
            let mut arguments: Vec<OsString> = vec!["eval".into(), "choice".into(), path()];
            arguments.extend(["--task".into(), self.inputs.stdin.path(task).into()]);
            if let Some(limit) = args.limit {
                arguments.extend(["--limit".into(), limit.to_string().into()]);
            }
            let kind = args.kind();
            if let Some(kind) = kind {
                arguments.extend(["--kind".into(), kind.name().into()]);
            }
            arguments.extend(self.threads());
            arguments.push("--json".into());
            let on = json!({
                "file": made.digest,
                "task": file.digest,
                "kind": kind,
                "limit": args.limit,
            });
            all.push(Measure {
                cell: format!("{}.task-{}", target.name, short(&file.digest)),
                key: self.inputs.key("choice", on),
                arguments,
            });
        }

        let mut arguments: Vec<OsString> = vec!["bench".into()];
        arguments.extend(match is_source {
            true => ["--stock".into(), source],
            false => [source, path()],
        });
        let mut test: Vec<OsString> = test_arguments(&args.test)
            .into_iter()
            .map(Into::into)
            .collect();
        test.extend(self.threads());
        arguments.extend(test.iter().cloned());
        arguments.extend(["--repetitions".into(), args.repetitions.to_string().into()]);
        arguments.extend(["-o".into(), "json".into()]);
        let on = json!({
            "file": made.digest,
            "beside": digest,
            "test": test.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>(),
            "repetitions": args.repetitions,
            "cpu": headshare_runtime::threads::processor_name(),
        });
        all.push(Measure {
            cell: format!("{}.speed", target.name),
            key: self.inputs.key("speed", on),
            arguments,
        });
        all
    }

    /// How `made` does against its rival, on the same tokens.
    pub(super) fn pair(
        &self,
        (target, made): (&Target, &Made),
        (rival, rival_made): (&Target, &Made),
    ) -> Measure {
        let base = Some((rival.path.as_path(), rival_made.digest.as_str()));
        Measure {
            cell: format!("{}.rival", target.name),
            ..self.perplexity("rival", (&target.path, made), base)
        }
    }

    fn perplexity(
        &self,
        measure: &str,
        (path, made): (&Path, &Made),
        base: Option<(&Path, &str)>,
    ) -> Measure {
        let args = self.args;
        let mut arguments: Vec<OsString> = vec!["eval".into(), "perplexity".into(), path.into()];
        let text = self.inputs.stdin.path(&args.text);
        arguments.extend(["--text".into(), text.into()]);
        arguments.extend(["--ctx".into(), args.ctx.to_string().into()]);
        if let Some(chunks) = args.chunks {
            arguments.extend(["--chunks".into(), chunks.to_string().into()]);
        }
        if let Some((base, _)) = base {
            arguments.extend(["--base".into(), base.into()]);
        }
        arguments.extend(self.threads());
        arguments.push("--json".into());
        let on = json!({
            "file": made.digest,
            "base": base.map(|(_, digest)| digest),
            "text": self.inputs.text.digest,
            "ctx": args.ctx,
            "chunks": args.chunks,
        });
        Measure {
            cell: String::new(),
            key: self.inputs.key(measure, on),
            arguments,
        }
    }

    fn threads(&self) -> Vec<OsString> {
        match self.args.threads {
            Some(n) => vec!["--threads".into(), n.to_string().into()],
            None => Vec::new(),
        }
    }
}

/// The beginning of a digest, without the name of the function.
fn short(digest: &str) -> &str {
    let hex = digest.rsplit(':').next().unwrap_or(digest);
    hex.get(..12).unwrap_or(hex)
}

fn test_arguments(test: &TestArgs) -> Vec<String> {
    let all = [
        ("--n-prompt", test.n_prompt),
        ("--n-gen", test.n_gen),
        ("--batch-size", test.batch_size),
        ("--ubatch-size", test.ubatch_size),
    ];
    all.into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value.to_string()])
        .collect()
}
