//! LLM-Pruner's importances of units, with gradients of a few windows of a text.

use std::path::Path;

use candle_core::Device;
use headshare_convert::baseline::{Ranking, tensors_of_units};
use headshare_convert::convert::variant::Variant;
use headshare_convert::input::ModelFile;
use headshare_convert::model::AttentionMap;
use headshare_train::importance::Products;
use headshare_train::{Model, Windows, pack};

use super::text::Tokens;
use crate::convert::read_text;
use crate::error::Context as _;
use crate::{Error, Ui, Unit};

/// Windows that are read, at most, and tokens of each: LLM-Pruner's ten samples of 128.
const WINDOWS: usize = 10;
const WINDOW: usize = 128;

/// The units of `source` by LLM-Pruner's importance, on windows from all over `text`.
pub(crate) fn ranking(
    source: &ModelFile,
    map: &AttentionMap,
    text: &Path,
    ui: &dyn Ui,
) -> Result<Ranking, Error> {
    let tokens = Tokens::of(source.path(), &read_text(text)?)?;
    let packed = pack(&tokens.text, WINDOW, tokens.begin, 0.0).about(|| text.display())?;
    let windows = spread(&packed.train);
    let mut model = Model::load(&Variant::unchanged(source), &[], &Device::Cpu)?;
    // The activations of one short window take little.
    model.keep_layers(model.config().layers.len());
    let wanted = tensors_of_units(source, map).about(|| source.path().display())?;
    let bar = ui.bar("weighing", windows.count() as u64, Unit::Parts);
    let wanted = |name: &str| wanted.contains(name);
    let products = Products::of(&model, &windows, wanted, &|done| bar.set(done));
    let products = products.about(|| source.path().display())?;
    Ranking::llm_pruner(source, map, &mut |name| products.get(name))
        .about(|| source.path().display())
}

/// As many windows as are read, evenly from all of them.
fn spread(all: &Windows) -> Windows {
    let count = all.count().min(WINDOWS);
    let which: Vec<usize> = (0..count).map(|i| i * all.count() / count).collect();
    all.pick(&which)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_come_from_all_over_the_text() {
        let of = |count: u32| Windows::new((0..2 * count).collect(), 2).unwrap();
        assert_eq!(spread(&of(3)), of(3));
        let some = spread(&of(25));
        let first: Vec<u32> = some.tokens().iter().copied().step_by(2).collect();
        assert_eq!(first, [0, 4, 10, 14, 20, 24, 30, 34, 40, 44]);
    }
}
