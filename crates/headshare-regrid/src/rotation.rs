//! Small random rotations.

use faer::linalg::solvers::Solve as _;
use faer::{Mat, Side};

/// Random numbers that are the same for the same seed (SplitMix64).
pub(crate) struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Above 0 and at most 1.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Of mean 0 and variance 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let (a, b) = (self.unit(), self.unit());
        (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }
}

/// The spectral norm of the skew matrices that rotations are made of: their
/// diagonals then are about 0.96.
const NORM: f64 = 0.3;

/// A random rotation of the axes in `turned` among themselves, the others of `n` as
/// they are: the Cayley transform (I - A) (I + A)^-1 of a random skew matrix A.
pub(crate) fn rotation(n: usize, turned: &[usize], random: &mut Random) -> Mat<f64> {
    let k = turned.len();
    // The norm of such a matrix is twice the root of k times the deviation.
    let deviation = NORM / (2.0 * (k.max(1) as f64).sqrt());
    let mut skew = Mat::<f64>::zeros(k, k);
    for j in 0..k {
        for i in 0..j {
            let value = deviation * random.normal();
            skew[(i, j)] = value;
            skew[(j, i)] = -value;
        }
    }
    // I + A commutes with I - A, and (I + A)(I + A)^T = I + A A^T is positive definite.
    let eye = Mat::<f64>::identity(k, k);
    let (minus, plus) = (&eye - &skew, &eye + &skew);
    let gram = &plus * plus.transpose();
    let small = match gram.llt(Side::Lower) {
        // (I + A)^-1 = (I + A)^T ((I + A) (I + A)^T)^-1, and (I + A)^T = I - A.
        Ok(llt) => llt.solve(&(&minus * &minus)),
        Err(_) => eye,
    };
    let mut place = vec![None; n];
    for (at, &axis) in turned.iter().enumerate() {
        place[axis] = Some(at);
    }
    Mat::from_fn(n, n, |i, j| match (place[i], place[j]) {
        (Some(a), Some(b)) => small[(a, b)],
        _ => f64::from(u8::from(i == j)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_keeps_lengths_and_turns_a_little() {
        let turned: Vec<usize> = (0..60).filter(|i| i % 7 != 3).collect();
        let r = rotation(60, &turned, &mut Random::new(3));
        let product = &r * r.transpose();
        let mut diagonal = 0.0;
        for i in 0..60 {
            for j in 0..60 {
                let expected = f64::from(u8::from(i == j));
                assert!((product[(i, j)] - expected).abs() < 1e-12, "{i} {j}");
            }
            if i % 7 == 3 {
                assert_eq!(r[(i, i)], 1.0);
            } else {
                diagonal += r[(i, i)] / turned.len() as f64;
            }
        }
        assert!((0.93..0.98).contains(&diagonal), "{diagonal}");
    }
}
