//! The picture of a run's losses.

use headshare_eval::analyze::curves::{Step, Weights, missing, picture};
use headshare_eval::analyze::file_name;
use headshare_eval::analyze::picture::Format;
use headshare_files::FileId;

use super::{Method, TrainModel};
use crate::output::Written;
use crate::{Error, Ui};

impl TrainModel {
    /// Finds out early that the picture cannot be drawn as what its name says.
    pub(super) fn check_curves(&self) -> Result<(), Error> {
        let format = self.curves.as_deref().map(|path| (path, Format::of(path)));
        match format {
            Some((path, Err(problem))) => {
                let path = path.display();
                Err(Error::usage(format!("the curves in {path}: {problem}")))
            }
            _ => Ok(()),
        }
    }

    /// Draws `steps` where a picture is wanted. A run that took no step leaves one that
    /// is there as it is.
    pub(super) fn draw(&self, steps: &[Step], inputs: &[FileId], ui: &dyn Ui) -> Result<(), Error> {
        let Some(path) = self.curves.as_deref() else {
            return Ok(());
        };
        let name = file_name(&self.source);
        let title = match self.method {
            Method::Tied => format!("Training of {name} with shared heads"),
            Method::Postshare => format!("Training of {name}, whose heads are to share"),
        };
        let weights = Weights {
            gamma: self.settings.gamma.into(),
            hidden: self.settings.hidden.into(),
        };
        let Some(scene) = picture(&title, steps, weights) else {
            let path = path.display();
            ui.remark(&format!("note: no step was taken, so {path} was not drawn"));
            return Ok(());
        };
        if let Some(missing) = missing(steps) {
            let log = match self.log {
                Some(_) => "",
                None => " (a log of figures keeps them)",
            };
            ui.remark(&format!("note: the curves: {missing}{log}"));
        }
        let format = Format::of(path).unwrap_or(Format::Svg);
        let written = Written {
            path,
            force: true,
            inputs,
        };
        written.write(&scene.encode(format), ui)
    }
}
