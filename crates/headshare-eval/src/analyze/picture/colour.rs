//! Colours, and the scales that turn numbers into them.

/// A colour, opaque unless `alpha` is below 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Colour {
    /// Red, green, blue.
    pub rgb: [u8; 3],
    /// 0 is invisible, 1 opaque.
    pub alpha: f64,
}

impl Colour {
    /// Text and axes.
    pub const INK: Self = Self::new(0x22, 0x22, 0x22);
    /// Small print.
    pub const FAINT_INK: Self = Self::new(0x5c, 0x5c, 0x5c);
    /// Grid lines.
    pub const GRID: Self = Self::new(0xe2, 0xe2, 0xe2);
    /// What has no value.
    pub const NOTHING: Self = Self::new(0xcf, 0xcf, 0xcf);
    /// What is to be noticed.
    pub const ACCENT: Self = Self::new(0xd9, 0x5f, 0x02);
    /// Ordinary data.
    pub const DATA: Self = Self::new(0x6f, 0x9b, 0xc4);
    /// Background.
    pub const WHITE: Self = Self::new(0xff, 0xff, 0xff);

    /// Colours of series that are told apart in greys, too.
    pub const SERIES: [Self; 8] = [
        Self::new(0x1f, 0x4e, 0x8c),
        Self::new(0xd9, 0x5f, 0x02),
        Self::new(0x2a, 0x91, 0x6b),
        Self::new(0xa8, 0x2e, 0x6f),
        Self::new(0x6b, 0x55, 0xb5),
        Self::new(0x8a, 0x6d, 0x1b),
        Self::new(0x3a, 0x3a, 0x3a),
        Self::new(0x44, 0xa5, 0xc9),
    ];

    /// An opaque colour.
    pub const fn new(r: u8, g: u8, b: u8) -> Self {
        Self {
            rgb: [r, g, b],
            alpha: 1.0,
        }
    }

    /// The same, translucent.
    pub const fn alpha(self, alpha: f64) -> Self {
        Self { alpha, ..self }
    }
}

const SEQUENTIAL: [[u8; 3]; 5] = [
    [0xf8, 0xf8, 0xf3],
    [0xb2, 0xda, 0xcb],
    [0x55, 0xa6, 0xb0],
    [0x2b, 0x61, 0x95],
    [0x1a, 0x1e, 0x4a],
];

const DIVERGING: [[u8; 3]; 5] = [
    [0x1d, 0x47, 0x83],
    [0x83, 0xb1, 0xd8],
    [0xfb, 0xfb, 0xfb],
    [0xf0, 0xa1, 0x78],
    [0x9c, 0x16, 0x20],
];

/// Steps from the first colour to the last, a multiple of four: finer than can
/// be seen, and coarse enough that pictures of noise stay small.
const LEVELS: f64 = 80.0;

/// Numbers as colours.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// The number of the first colour, and of whatever is below.
    pub low: f64,
    /// The number of the last colour, and of whatever is above.
    pub high: f64,
    anchors: [[u8; 3]; 5],
}

impl Scale {
    /// From light to dark.
    pub const fn sequential(low: f64, high: f64) -> Self {
        Self {
            low,
            high,
            anchors: SEQUENTIAL,
        }
    }

    /// From blue through white at 0 to red.
    pub const fn diverging(limit: f64) -> Self {
        Self {
            low: -limit,
            high: limit,
            anchors: DIVERGING,
        }
    }

    /// A number's colour.
    pub fn colour(&self, value: f64) -> Colour {
        if value.is_nan() {
            return Colour::NOTHING;
        }
        let share = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        let share = (share * LEVELS).round() / LEVELS;
        let at = share * (self.anchors.len() - 1) as f64;
        let first = (at as usize).min(self.anchors.len() - 2);
        let rest = at - first as f64;
        let mix = |channel: usize| {
            let [a, b] = [first, first + 1].map(|i| f64::from(self.anchors[i][channel]));
            (a + (b - a) * rest).round() as u8
        };
        Colour::new(mix(0), mix(1), mix(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_hit_their_anchors_and_clip() {
        let scale = Scale::diverging(2.0);
        assert_eq!(scale.colour(0.0).rgb, DIVERGING[2]);
        assert_eq!(scale.colour(-2.0).rgb, DIVERGING[0]);
        assert_eq!(scale.colour(9.0).rgb, DIVERGING[4]);
        assert_eq!(scale.colour(f64::NAN), Colour::NOTHING);
        let scale = Scale::sequential(0.0, 1.0);
        assert_eq!(scale.colour(0.5).rgb, SEQUENTIAL[2]);
        assert_eq!(scale.colour(f64::INFINITY).rgb, SEQUENTIAL[4]);
    }
}
