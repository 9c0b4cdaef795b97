//! The course of a training: the loss of its steps and that on what is held out, the
//! like of the paper's Figure 7.

use serde::Deserialize;

use super::picture::{LinePlot, LineSeries, MARGIN, Marks, Point, Scene, TITLE_SPACE};

/// Pixels between two plots.
const GAP: u32 = 24;

/// The figures of one step, as a run says them after it, or what was evaluated before the
/// first.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Step {
    /// Its number, from 1; 0 for the model before the first.
    pub step: u64,
    /// What was made smaller: the weighted sum of all losses, in nats a token. Every step has
    /// it.
    pub loss: Option<f64>,
    /// The loss on what is held out, without the distance of pairs, where it was
    /// evaluated after the step.
    pub evaluation: Option<f64>,
    /// The distance of the pairs of heads that are pulled together, L_w of the paper.
    pub distance: Option<f64>,
    /// The language-model loss, where the model predicted anything.
    pub language: Option<f64>,
    /// The distance from another model's residual stream, where that counts.
    pub hidden: Option<f64>,
}

/// What counts in the loss beside predictions, and how much.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Weights {
    /// The distance of pairs.
    pub gamma: f64,
    /// The distance from another model's residual stream.
    pub hidden: f64,
}

impl Step {
    /// What was evaluated before the first step.
    pub fn start(evaluation: f64) -> Self {
        Self {
            step: 0,
            loss: None,
            evaluation: Some(evaluation),
            distance: None,
            language: None,
            hidden: None,
        }
    }

    /// The loss of predictions alone, as what is held out is measured by.
    fn predictions(&self, weights: Weights) -> Option<f64> {
        self.language?;
        let beside = weights.gamma * self.distance.unwrap_or(0.0)
            + weights.hidden * self.hidden.unwrap_or(0.0);
        Some(self.loss? - beside)
    }

    /// The figures in a `line` of JSON, if it has those of a step or of the start.
    pub fn read(line: &str) -> Option<Self> {
        let step: Self = serde_json::from_str(line).ok()?;
        let is_whole = match step.step {
            0 => step.evaluation.is_some(),
            _ => step.loss.is_some(),
        };
        is_whole.then_some(step)
    }
}

/// The losses over the steps, and the distance of pairs where there are some; `weights` are of
/// what counts in the loss beside predictions. None without a step.
pub fn picture(title: &str, steps: &[Step], weights: Weights) -> Option<Scene> {
    let last = steps.last().filter(|last| last.step > 0)?;
    let points = |of: &dyn Fn(&Step) -> Option<f64>| -> Vec<Point> {
        let points = steps.iter().filter_map(|step| {
            Some(Point {
                at: (step.step as f64, of(step)?),
                label: String::new(),
            })
        });
        points.collect()
    };
    let distances = points(&|step| step.distance);
    let pulled = !distances.is_empty();
    // What is held out is measured without distances, which may be many times the loss.
    let plain = points(&|step| step.predictions(weights));
    let mut held_out = points(&|step| step.evaluation);
    let lowest = (0..held_out.len()).min_by(|a, b| {
        let height = |i: &usize| held_out[*i].at.1;
        height(a).total_cmp(&height(b))
    });
    let lowest = lowest.map(|i| {
        held_out[i].label = "lowest".to_owned();
        let (step, loss) = held_out[i].at;
        let when = match step {
            0.0 => "before the first step".to_owned(),
            step => format!("after step {step}"),
        };
        format!("loss on what is held out, at its lowest {loss:.4} {when}")
    });
    let without = match (pulled, steps.iter().any(|step| step.hidden.is_some())) {
        (true, _) => ", without distances",
        (false, true) => ", without the distance of hidden states",
        (false, false) => "",
    };
    let mut series = Vec::new();
    if !plain.is_empty() {
        series.push(LineSeries {
            name: format!("loss of each step{without}"),
            points: plain,
            colour: 0,
            marks: Marks::None,
        });
    }
    if let Some(name) = lowest {
        series.push(LineSeries {
            name,
            points: held_out,
            colour: 1,
            marks: Marks::Circles,
        });
    }
    let mut plots = Vec::new();
    if !series.is_empty() {
        plots.push(plot("loss, nats a token", series));
    }
    if pulled {
        let line = LineSeries {
            name: "distance of the pairs that are pulled together, before each step".to_owned(),
            points: distances,
            colour: 2,
            marks: Marks::None,
        };
        plots.push(plot("distance", vec![line]));
    }
    let sizes = plots.iter().map(LinePlot::size);
    let (width, height) = sizes.fold((0, 0), |(w, h), (width, height)| {
        (w.max(width), h + height + GAP)
    });
    let small_print = match missing(steps) {
        Some(missing) => missing,
        None => format!("{} steps", last.step),
    };
    let size = (width + 2 * MARGIN, TITLE_SPACE + 8 + height);
    let mut scene = Scene::new(size.0, size.1, title, &small_print);
    let mut top = TITLE_SPACE + 8;
    for plot in plots {
        plot.draw(&mut scene, (MARGIN, top));
        top += plot.size().1 + GAP;
    }
    Some(scene)
}

fn plot(meaning: &str, series: Vec<LineSeries>) -> LinePlot {
    LinePlot {
        x_meaning: "step".to_owned(),
        y_meaning: meaning.to_owned(),
        level: None,
        series,
        heading: None,
        counts: true,
    }
}

/// What is not drawn, in words: steps of an earlier run whose figures were not kept.
pub fn missing(steps: &[Step]) -> Option<String> {
    let steps = &steps[steps.partition_point(|step| step.step == 0)..];
    let (first, last) = (steps.first()?.step, steps.last()?.step);
    let missing = last.saturating_sub(steps.len() as u64);
    match missing {
        0 => None,
        n if n + 1 == first => Some(format!(
            "from step {first} to {last}: the figures of the steps before were not kept"
        )),
        n => Some(format!(
            "{last} steps; the figures of {n} of them were not kept"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyze::picture::Format;

    fn step(step: u64) -> Step {
        Step {
            step,
            loss: Some(3.0 + 1.0 / step as f64),
            evaluation: step
                .is_multiple_of(5)
                .then(|| 3.5 + (step as f64 - 10.0).abs()),
            distance: None,
            language: Some(3.0),
            hidden: None,
        }
    }

    fn svg(steps: &[Step], gamma: f64) -> String {
        let weights = Weights {
            gamma,
            hidden: 10.0,
        };
        let scene = picture("Training", steps, weights).unwrap();
        String::from_utf8(scene.encode(Format::Svg)).unwrap()
    }

    /// The points of each thick line that is no part of the legend.
    fn lines(svg: &str) -> Vec<Vec<(i32, i32)>> {
        let thick =
            |line: &&str| line.starts_with("<polyline") && line.contains("stroke-width=\"2\"");
        let points = svg.lines().filter(thick).map(|line| {
            let from = line.split_once("points=\"").unwrap().1;
            let all = from.split_once('"').unwrap().0;
            let point = |point: &str| {
                let (x, y) = point.split_once(',').unwrap();
                (x.parse().unwrap(), y.parse().unwrap())
            };
            all.split_whitespace().map(point).collect()
        });
        points.filter(|line: &Vec<_>| line.len() > 2).collect()
    }

    #[test]
    fn steps_and_evaluations_are_lines() {
        let steps: Vec<Step> = (1..=20).map(step).collect();
        let svg = svg(&steps, 0.0);
        let lines = lines(&svg);
        let lengths: Vec<usize> = lines.iter().map(Vec::len).collect();
        assert_eq!(lengths, [20, 4]);
        // Lower is further down, and an evaluation stands above its step.
        assert!(
            lines[0].windows(2).all(|two| two[0].1 <= two[1].1),
            "{lines:?}"
        );
        assert_eq!(lines[1][1].0, lines[0][9].0);
        assert!(svg.contains("3.5000 after step 10\n"), "{svg}");
        assert!(svg.contains("\nlowest\n"), "{svg}");
        assert!(
            svg.contains("20 steps\n") && !svg.contains("distance"),
            "{svg}"
        );
        assert!(svg.contains("loss on what is held out"));
        assert_eq!(picture("Training", &[], Weights::default()), None);
        // Nothing held out: no such line.
        let bare: Vec<Step> = (steps.into_iter())
            .map(|step| Step {
                evaluation: None,
                ..step
            })
            .collect();
        assert!(!self::svg(&bare, 0.0).contains("held out"));
    }

    #[test]
    fn what_was_best_before_the_first_step_is_said_to_be() {
        let steps: Vec<Step> = [Step::start(2.0)]
            .into_iter()
            .chain((1..=20).map(step))
            .collect();
        let svg = svg(&steps, 0.0);
        assert!(svg.contains("2.0000 before the first step\n"), "{svg}");
        let lengths: Vec<usize> = lines(&svg).iter().map(Vec::len).collect();
        assert_eq!(lengths, [20, 5]);
        assert_eq!((missing(&steps), missing(&steps[..1])), (None, None));
        assert!(picture("Training", &steps[..1], Weights::default()).is_none());
        let late: Vec<Step> = [&steps[..1], &steps[4..]].concat();
        assert!(missing(&late).unwrap().starts_with("from step 4 to 20"));
        assert_eq!(
            Step::read(r#"{"step":0,"evaluation":2.0}"#),
            Some(Step::start(2.0))
        );
        for other in [
            r#"{"step":0}"#,
            r#"{"step":3}"#,
            r#"{"step":3,"evaluation":1.0}"#,
            "notes",
        ] {
            assert_eq!(Step::read(other), None, "{other}");
        }
    }

    #[test]
    fn the_distance_of_pairs_has_a_plot_of_its_own() {
        let pulled = |step: Step| Step {
            loss: step.loss.map(|loss| loss + 0.5 * 40.0 / step.step as f64),
            distance: Some(40.0 / step.step as f64),
            ..step
        };
        let steps: Vec<Step> = (1..=20).map(step).map(pulled).collect();
        let svg = svg(&steps, 0.5);
        let drawn = lines(&svg);
        let lengths: Vec<usize> = drawn.iter().map(Vec::len).collect();
        assert_eq!(lengths, [20, 4, 20]);
        // Without the distance, the losses are those of a run that pulls nothing.
        let plain: Vec<Step> = (1..=20).map(step).collect();
        assert_eq!(drawn[..2], lines(&self::svg(&plain, 0.5)));
        assert!(svg.contains("loss of each step, without distances"));
    }

    #[test]
    fn a_step_shows_what_its_evaluation_shows() {
        let plain: Vec<Step> = (1..=20).map(step).collect();
        let with_hidden = |step: &Step| Step {
            loss: step.loss.map(|loss| loss + 10.0 * 0.25),
            hidden: Some(0.25),
            ..step.clone()
        };
        let hidden: Vec<Step> = plain.iter().map(with_hidden).collect();
        assert_eq!(lines(&svg(&hidden, 0.0)), lines(&svg(&plain, 0.0)));
        assert!(svg(&hidden, 0.0).contains("without the distance of hidden states"));
        // Where nothing is predicted there is no such line, and not one of zeros.
        let pulled: Vec<Step> = (1..=20)
            .map(|i| Step {
                loss: Some(20.0 / i as f64),
                evaluation: None,
                distance: Some(40.0 / i as f64),
                language: None,
                ..step(i)
            })
            .collect();
        let svg = svg(&pulled, 0.5);
        assert_eq!(lines(&svg).len(), 1, "{svg}");
        assert!(!svg.contains("loss of each step"), "{svg}");
    }

    #[test]
    fn steps_that_are_not_there_are_told() {
        let steps = |range: std::ops::RangeInclusive<u64>| range.map(step).collect::<Vec<_>>();
        assert_eq!(missing(&steps(1..=6)), None);
        let late = steps(4..=9);
        assert!(missing(&late).unwrap().starts_with("from step 4 to 9"));
        assert!(svg(&late, 0.0).contains("the figures of the steps before were not kept"));
        let torn = [steps(1..=2), steps(5..=6)].concat();
        assert!(missing(&torn).unwrap().contains("of 2 of them"));
    }
}
