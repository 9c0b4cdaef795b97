//! The shape of the code itself: no two files import each other, however long
//! the way round, and no file grows past what can be read at one go.
//!
//! Read with `syn`: an arrow goes from a file to the one that defines what it
//! names, through `use` and through paths alike. Re-exports are followed and
//! are no arrows themselves, and what stands under `#[cfg(test)]` is left out.
//!
//! A binary of its own: it reads sources only, so it is linked without llama.cpp,
//! in a moment, after every change.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::visit::Visit;

/// Lines of a file, at most.
const MAX_LINES: usize = 600;

/// The modules of one crate, by path from its root.
struct Crate {
    modules: BTreeMap<Vec<String>, Module>,
}

#[derive(Default)]
struct Module {
    file: PathBuf,
    /// What it defines itself.
    defines: BTreeSet<String>,
    /// What it hands on: name -> where it comes from, as written.
    reexports: BTreeMap<String, Vec<String>>,
    /// Modules whose content it hands on whole.
    globs: Vec<Vec<String>>,
    /// Names that `use` brings in, for paths that begin with them.
    imports: BTreeMap<String, Vec<String>>,
    /// Every path that is written in it.
    paths: BTreeSet<Vec<String>>,
}

fn is_test(attrs: &[syn::Attribute]) -> bool {
    attrs.iter().any(|attr| {
        attr.path().is_ident("cfg")
            && attr
                .parse_args::<syn::Path>()
                .is_ok_and(|path| path.is_ident("test"))
            || attr.path().is_ident("test")
    })
}

fn leaves(tree: &syn::UseTree, path: &mut Vec<String>, each: &mut dyn FnMut(&[String], String)) {
    match tree {
        syn::UseTree::Path(part) => {
            path.push(part.ident.to_string());
            leaves(&part.tree, path, each);
            path.pop();
        }
        syn::UseTree::Name(name) if name.ident == "self" => {
            let last = path.last().cloned().unwrap_or_default();
            each(path, last);
        }
        syn::UseTree::Name(name) => {
            path.push(name.ident.to_string());
            each(path, name.ident.to_string());
            path.pop();
        }
        syn::UseTree::Rename(name) => {
            path.push(name.ident.to_string());
            each(path, name.rename.to_string());
            path.pop();
        }
        syn::UseTree::Glob(_) => each(path, "*".to_owned()),
        syn::UseTree::Group(group) => {
            for tree in &group.items {
                leaves(tree, path, each);
            }
        }
    }
}

/// Collects what a module says.
struct Reader<'a> {
    module: &'a mut Module,
    /// Names of child modules with files of their own.
    children: Vec<String>,
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        use syn::Item;
        let (attrs, name) = match item {
            Item::Const(i) => (&i.attrs, Some(i.ident.to_string())),
            Item::Enum(i) => (&i.attrs, Some(i.ident.to_string())),
            Item::Fn(i) => (&i.attrs, Some(i.sig.ident.to_string())),
            Item::Static(i) => (&i.attrs, Some(i.ident.to_string())),
            Item::Struct(i) => (&i.attrs, Some(i.ident.to_string())),
            Item::Trait(i) => (&i.attrs, Some(i.ident.to_string())),
            Item::Type(i) => (&i.attrs, Some(i.ident.to_string())),
            Item::Union(i) => (&i.attrs, Some(i.ident.to_string())),
            Item::Macro(i) => (&i.attrs, i.ident.as_ref().map(ToString::to_string)),
            Item::Mod(i) if i.content.is_none() => {
                if !is_test(&i.attrs) {
                    self.children.push(i.ident.to_string());
                }
                return;
            }
            Item::Mod(i) => (&i.attrs, Some(i.ident.to_string())),
            Item::Impl(i) => (&i.attrs, None),
            Item::Use(i) => (&i.attrs, None),
            _ => return syn::visit::visit_item(self, item),
        };
        if is_test(attrs) {
            return;
        }
        self.module.defines.extend(name);
        syn::visit::visit_item(self, item);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let public = !matches!(item.vis, syn::Visibility::Inherited);
        let module = &mut *self.module;
        leaves(&item.tree, &mut Vec::new(), &mut |path, name| {
            match (public, name.as_str()) {
                (true, "*") => module.globs.push(path.to_vec()),
                (true, _) => {
                    module.reexports.insert(name.clone(), path.to_vec());
                }
                (false, _) => {
                    module.paths.insert(path.to_vec());
                }
            }
            module.imports.insert(name, path.to_vec());
        });
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let words = path.segments.iter().map(|s| s.ident.to_string());
        self.module.paths.insert(words.collect());
        syn::visit::visit_path(self, path);
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}
}

impl Crate {
    fn read(root: &Path) -> Self {
        let mut modules = BTreeMap::new();
        let mut open = vec![(Vec::new(), root.to_owned())];
        while let Some((name, file)) = open.pop() {
            let source = std::fs::read_to_string(&file).unwrap();
            let parsed = syn::parse_file(&source).unwrap();
            let mut module = Module {
                file: file.clone(),
                ..Module::default()
            };
            let mut reader = Reader {
                module: &mut module,
                children: Vec::new(),
            };
            reader.visit_file(&parsed);
            let children = reader.children;
            let folder = match file.file_stem().and_then(|s| s.to_str()).unwrap() {
                "mod" | "lib" | "main" => file.parent().unwrap().to_owned(),
                stem => file.with_file_name(stem),
            };
            for child in children {
                let flat = folder.join(format!("{child}.rs"));
                let path = if flat.is_file() {
                    flat
                } else {
                    folder.join(&child).join("mod.rs")
                };
                assert!(path.is_file(), "{}: mod {child}", file.display());
                open.push(([&name[..], &[child]].concat(), path));
            }
            modules.insert(name, module);
        }
        Self { modules }
    }

    /// The module that defines what `path`, written in `from`, names.
    fn target(&self, from: &[String], path: &[String], depth: usize) -> Option<Vec<String>> {
        if depth > 20 {
            return None;
        }
        let first = path.first()?;
        let (mut at, rest): (Vec<String>, &[String]) = match first.as_str() {
            "crate" => (Vec::new(), &path[1..]),
            "self" => (from.to_vec(), &path[1..]),
            "super" => {
                let ups = path.iter().take_while(|word| *word == "super").count();
                (from[..from.len().checked_sub(ups)?].to_vec(), &path[ups..])
            }
            name => {
                let module = &self.modules[from];
                let child = [from, &path[..1]].concat();
                if self.modules.contains_key(&child) {
                    (from.to_vec(), path)
                } else if module.defines.contains(name) {
                    return Some(from.to_vec());
                } else {
                    let import = module.imports.get(name)?;
                    if import[..] == path[..1] {
                        return None;
                    }
                    let whole = [&import[..], &path[1..]].concat();
                    return self.target(from, &whole, depth + 1);
                }
            }
        };
        for (i, word) in rest.iter().enumerate() {
            let child = [&at[..], std::slice::from_ref(word)].concat();
            if self.modules.contains_key(&child) {
                at = child;
                continue;
            }
            let module = &self.modules[&at];
            if module.defines.contains(word) {
                return Some(at);
            }
            let handed_on = (module.reexports.get(word)).or_else(|| module.imports.get(word));
            if let Some(path) = handed_on {
                let whole = [&path[..], &rest[i + 1..]].concat();
                return self.target(&at, &whole, depth + 1);
            }
            return module.globs.iter().find_map(|glob| {
                let whole = [&glob[..], &rest[i..]].concat();
                self.target(&at, &whole, depth + 1)
            });
        }
        // A module as such: what is named through it is another path.
        None
    }

    /// The files that a file takes something from.
    fn arrows(&self) -> BTreeMap<&Path, BTreeSet<&Path>> {
        let mut arrows: BTreeMap<&Path, BTreeSet<&Path>> = BTreeMap::new();
        for (name, module) in &self.modules {
            for path in &module.paths {
                if let Some(target) = self.target(name, path, 0)
                    && target != *name
                {
                    let file = self.modules[&target].file.as_path();
                    arrows.entry(&module.file).or_default().insert(file);
                }
            }
        }
        arrows
    }
}

/// All that can be reached from `start`.
fn reach<'a>(
    arrows: &BTreeMap<&'a Path, BTreeSet<&'a Path>>,
    start: &'a Path,
) -> BTreeSet<&'a Path> {
    let mut seen = BTreeSet::new();
    let mut open = vec![start];
    while let Some(at) = open.pop() {
        for next in arrows.get(at).into_iter().flatten() {
            if seen.insert(*next) {
                open.push(next);
            }
        }
    }
    seen
}

/// Groups of files that import each other.
fn circles<'a>(arrows: &BTreeMap<&'a Path, BTreeSet<&'a Path>>) -> BTreeSet<Vec<&'a Path>> {
    let reached: BTreeMap<&Path, BTreeSet<&Path>> = arrows
        .keys()
        .map(|file| (*file, reach(arrows, file)))
        .collect();
    let mut found = BTreeSet::new();
    for (file, others) in &reached {
        if others.contains(file) {
            let circle = others
                .iter()
                .filter(|other| reached.get(*other).is_some_and(|back| back.contains(file)));
            found.insert(circle.copied().collect());
        }
    }
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn crates() -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(root().join("crates"))
        .unwrap()
        .map(|entry| entry.unwrap().path().join("src/lib.rs"))
        .collect();
    all.push(root().join("src/lib.rs"));
    all.sort();
    all
}

#[test]
fn no_file_imports_what_imports_it() {
    let mut all = String::new();
    for lib in crates() {
        let house = Crate::read(&lib);
        let arrows = house.arrows();
        assert!(house.modules.len() < 3 || !arrows.is_empty(), "{lib:?}");
        for circle in circles(&arrows) {
            let name = |file: &Path| file.strip_prefix(root()).unwrap().display().to_string();
            for file in &circle {
                let to = arrows[file].iter().filter(|to| circle.contains(to));
                let to: Vec<String> = to.map(|to| name(to)).collect();
                all += &format!("{} -> {}\n", name(file), to.join(", "));
            }
            all.push('\n');
        }
    }
    assert!(all.is_empty(), "circles:\n{all}");
}

/// The check itself finds a circle through a re-export, and no other.
#[test]
fn a_circle_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("lib.rs", "mod a; mod b; mod c; pub use c::C;");
    write("a.rs", "use crate::b::B; pub struct A(B);");
    write("b.rs", "pub struct B; fn f(_: crate::C) {}");
    write(
        "c.rs",
        "use super::a; pub struct C(a::A); #[cfg(test)] mod t { use super::super::b::B; }",
    );
    let house = Crate::read(&folder.path().join("lib.rs"));
    let found = circles(&house.arrows());
    assert_eq!(found.len(), 1);
    assert_eq!(found.first().unwrap().len(), 3);
    write("b.rs", "pub struct B;");
    let house = Crate::read(&folder.path().join("lib.rs"));
    assert!(circles(&house.arrows()).is_empty());
}

#[test]
fn no_file_is_too_long() {
    let mut open = ["src", "crates", "tests", "benches"]
        .map(|f| root().join(f))
        .to_vec();
    let mut long = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()));
        } else if path
            .extension()
            .is_some_and(|e| e == "rs" || e == "cpp" || e == "c")
        {
            let lines = std::fs::read_to_string(&path).unwrap().lines().count();
            if lines > MAX_LINES {
                long.push((path, lines));
            }
        }
    }
    assert!(long.is_empty(), "{long:?}");
}
