//! Which layers share: the paper's Figure 6, for converted files side by side.

use std::collections::BTreeMap;
use std::path::Path;

use headshare_format::alias::keys;
use headshare_format::{FormatError, Gguf};
use serde::{Deserialize, Serialize};

use super::picture::{ColumnPlot, MARGIN, Scene, Series, TITLE_SPACE};
use super::{AnalyzeError, file_name};
use crate::inspect;
use headshare_convert::convert::variant::MADE_BY;
use headshare_convert::convert::{ConvertError, source_view};
use headshare_convert::input::{InputError, ModelFile};
use headshare_convert::model::AttentionMap;
use headshare_convert::model::Part;
use headshare_convert::plan::{ChosenBy, Plan, Removed};

/// What several converted files share, by layer.
#[derive(Debug, Clone, Serialize)]
pub struct Ratios {
    /// The files, in the order in which they were named.
    pub files: Vec<FileRatios>,
}

/// What one converted file shares.
#[derive(Debug, Clone, Serialize)]
pub struct FileRatios {
    /// The file's path.
    pub path: String,
    /// Whether it shares by a plan; else what is byte-equal.
    pub planned: bool,
    /// How the units of the plan were chosen.
    #[serde(rename = "match")]
    pub choice: Option<ChosenBy>,
    /// The share of units that the plan was made for.
    pub ratio: Option<f64>,
    /// Bytes of the rows that the plan takes from elsewhere; what is byte-equal
    /// comes on top.
    pub planned_bytes: u64,
    /// The layers, ascending.
    pub layers: Vec<LayerRatios>,
}

/// What one layer shares.
#[derive(Debug, Clone, Serialize)]
pub struct LayerRatios {
    /// The layer.
    pub layer: u32,
    /// Its units; 0 where a lossless file's heads are not known.
    pub units: u32,
    /// Those that it had before and that were dropped.
    pub dropped: u32,
    /// Units whose q, k or v rows are another unit's, by the plan.
    pub aliased: Parts,
    /// Bytes of the layer's tensors.
    pub bytes: u64,
    /// Those that are stored at an earlier place.
    pub shared_bytes: u64,
}

/// A number for each part. They differ for plans by `separate` only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Parts {
    /// Query rows.
    pub q: u32,
    /// Key rows.
    pub k: u32,
    /// Value rows.
    pub v: u32,
}

impl Parts {
    fn of(&mut self, part: Part) -> &mut u32 {
        match part {
            Part::Q => &mut self.q,
            Part::K => &mut self.k,
            Part::V => &mut self.v,
        }
    }
}

/// One column of the table, one line of the picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// What is shared: `units`, `q`, `k`, `v` or `bytes`; or `dropped`.
    pub what: &'static str,
    /// Layer and share, from 0 to 1.
    pub shares: Vec<(u32, f64)>,
}

/// Looks at the converted files at `paths`.
///
/// # Errors
/// When one is no converted file, or the plan in it cannot be read.
pub fn ratios(paths: &[impl AsRef<Path>]) -> Result<Ratios, AnalyzeError> {
    let files: Result<Vec<_>, _> = paths
        .iter()
        .map(|path| file_ratios(path.as_ref()))
        .collect();
    Ok(Ratios { files: files? })
}

fn file_ratios(path: &Path) -> Result<FileRatios, AnalyzeError> {
    let (file, table) = ModelFile::open_converted(path)?;
    let plan = headshare_convert::convert::plan_of(&file, &table)?;
    let mut layers: BTreeMap<u32, LayerRatios> = inspect::layers_of(&table, plan.as_ref())
        .into_iter()
        .filter_map(|sharing| {
            let layer = sharing.layer?;
            let ratios = LayerRatios {
                layer,
                units: 0,
                dropped: 0,
                aliased: Parts::default(),
                bytes: sharing.bytes,
                shared_bytes: sharing.shared_bytes,
            };
            Some((layer, ratios))
        })
        .collect();
    let view = source_view(&file, &table)?;
    let logical =
        Gguf::parse_header(view.header(), view.len()).map_err(InputError::content(path))?;
    // Of a model whose units went, what is left is counted anew.
    let left = plan.as_ref().map(Plan::renumbered);
    let mut planned_bytes = 0;
    match (AttentionMap::of(&logical), &left) {
        (Ok(map), plan) => {
            if let Some(Err(error)) = plan.as_ref().map(|plan| plan.check(&map)) {
                let error = FormatError::key(keys::PLAN, error.to_string());
                return Err(InputError::content(path)(error).into());
            }
            let rows = plan.iter().flat_map(|plan| plan.shared_rows(&map));
            planned_bytes = rows.map(|(alias, _)| alias.len).sum();
            for layer in &map.layers {
                if let Some(ratios) = layers.get_mut(&layer.layer) {
                    ratios.units = layer.n_head_kv;
                }
            }
        }
        // Byte-equal tensors need no heads.
        (Err(_), None) => {}
        (Err(error), Some(_)) => {
            let path = path.to_owned();
            return Err(ConvertError::Model { path, error }.into());
        }
    }
    for alias in plan.iter().flat_map(Plan::shares) {
        if let Some(ratios) = layers.get_mut(&alias.layer) {
            for &part in &alias.parts {
                *ratios.aliased.of(part) += 1;
            }
        }
    }
    for unit in dropped_from(&logical, path)? {
        if let Some(ratios) = layers.get_mut(&unit.layer) {
            ratios.dropped += 1;
        }
    }
    Ok(FileRatios {
        path: path.display().to_string(),
        planned_bytes,
        planned: plan.is_some(),
        choice: plan.as_ref().map(|plan| plan.choice.by),
        ratio: plan.as_ref().and_then(|plan| plan.choice.ratio),
        layers: layers.into_values().collect(),
    })
}

/// The units that a model was written without. The plan by which it shares
/// counts what was left; its own key has the plan before that.
fn dropped_from(model: &Gguf, path: &Path) -> Result<Vec<Removed>, AnalyzeError> {
    #[derive(Deserialize)]
    struct MadeBy {
        plan: Box<serde_json::value::RawValue>,
    }
    let content = || InputError::content(path);
    let Some(json) = model.str_value(MADE_BY).map_err(content())? else {
        return Ok(Vec::new());
    };
    let wrong = |error: &dyn ToString| content()(FormatError::key(MADE_BY, error.to_string()));
    let made: MadeBy = serde_json::from_str(json).map_err(|error| wrong(&error))?;
    let plan = Plan::from_json(made.plan.get().as_bytes()).map_err(|error| wrong(&error))?;
    Ok(plan.drops().cloned().collect())
}

impl FileRatios {
    /// What the file is about: the shares of its units, or of each part when
    /// these differ; of units that were dropped, where there are any; and of
    /// bytes, where more is shared than the plan says.
    pub fn columns(&self) -> Vec<Column> {
        let column = |what, share: &dyn Fn(&LayerRatios) -> f64| Column {
            what,
            shares: self.layers.iter().map(|l| (l.layer, share(l))).collect(),
        };
        let of = |part: u32, whole: u32| match whole {
            0 => 0.0,
            whole => f64::from(part) / f64::from(whole),
        };
        let alike = |l: &LayerRatios| l.aliased.q == l.aliased.k && l.aliased.q == l.aliased.v;
        let mut columns = match self.planned {
            false => Vec::new(),
            true if self.layers.iter().all(alike) => {
                vec![column("units", &|l| of(l.aliased.q, l.units))]
            }
            true => vec![
                column("q", &|l| of(l.aliased.q, l.units)),
                column("k", &|l| of(l.aliased.k, l.units)),
                column("v", &|l| of(l.aliased.v, l.units)),
            ],
        };
        if self.layers.iter().any(|l| l.dropped > 0) {
            columns.push(column("dropped", &|l| of(l.dropped, l.units + l.dropped)));
        }
        let shared: u64 = self.layers.iter().map(|l| l.shared_bytes).sum();
        if !self.planned || shared > self.planned_bytes {
            columns.push(column("bytes", &|l| {
                l.shared_bytes as f64 / l.bytes.max(1) as f64
            }));
        }
        columns
    }

    /// The file's name and how it was made.
    pub fn title(&self) -> String {
        let name = file_name(Path::new(&self.path));
        match (self.choice, self.ratio) {
            (Some(by), Some(ratio)) => format!("{name} ({by}, ratio {ratio})"),
            (Some(by), None) => format!("{name} ({by})"),
            (None, _) => format!("{name} (lossless)"),
        }
    }
}

impl Ratios {
    /// The picture: a panel for each column of each file.
    pub fn picture(&self) -> Scene {
        let panels = self.files.iter().enumerate().flat_map(|(colour, file)| {
            let title = file.title();
            file.columns().into_iter().map(move |column| Series {
                name: format!("{}: {title}", column.what),
                points: column
                    .shares
                    .iter()
                    .map(|&(layer, share)| (layer, share * 100.0))
                    .collect(),
                colour,
            })
        });
        let plot = ColumnPlot {
            meaning: "share",
            series: panels.collect(),
        };
        let (width, height) = plot.size();
        let mut scene = Scene::new(
            width + 2 * MARGIN,
            TITLE_SPACE + height + MARGIN,
            "Which layers use other layers' weights",
            "units or their q, k, v rows: of the layer's; dropped: of those it had; bytes: of its tensors",
        );
        plot.draw(&mut scene, (MARGIN, TITLE_SPACE));
        scene
    }
}
