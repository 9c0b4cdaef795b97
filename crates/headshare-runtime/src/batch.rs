//! A batch: tokens of one or more sequences to evaluate at once, each with its
//! position, and a flag on those whose logits are wanted.

use ggml_sys as sys;

use crate::vocab::Token;

/// A sequence's number, below [`crate::ContextParams::n_seq_max`].
pub type SeqId = u32;

/// Why a batch cannot be evaluated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// llama.cpp cannot count that far.
    #[error("a position or sequence of {0}")]
    TooLarge(u32),
    /// A token for which no sequence was given.
    #[error("a token of no sequence")]
    NoSequence,
    /// A sequence that the context does not have.
    #[error("sequence {sequence}, where there can be {n_seq_max} (n_seq_max)")]
    UnknownSequence {
        /// The sequence.
        sequence: i32,
        /// How many there can be.
        n_seq_max: u32,
    },
    /// No tokens, or more than the context takes at once.
    #[error("{len} tokens, where 1 to {room} can be evaluated")]
    Length {
        /// How many there are.
        len: usize,
        /// How many there can be.
        room: u32,
    },
    /// A token that the vocabulary does not have.
    #[error("token {token} is outside the vocabulary of {n_tokens} tokens")]
    UnknownToken {
        /// The token.
        token: Token,
        /// The vocabulary's size.
        n_tokens: i32,
    },
    /// More tokens whose logits are wanted than the context has room for.
    #[error("{wanted} outputs, where there is room for {room}")]
    Outputs {
        /// How many are wanted.
        wanted: usize,
        /// How many there can be.
        room: usize,
    },
}

/// Tokens to evaluate at once, for [`crate::Context::decode_batch`].
///
/// ```
/// # use headshare_runtime::Batch;
/// // Two continuations of what sequences 0 and 1 have in common.
/// let mut batch = Batch::new();
/// batch.add(312, 0, &[0, 1], false);
/// batch.add(49, 1, &[0], true);
/// batch.add(50, 1, &[1], true);
/// assert_eq!((batch.len(), batch.n_outputs()), (3, 2));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Batch {
    tokens: Vec<Token>,
    positions: Vec<sys::llama_pos>,
    /// How many sequences each token belongs to.
    n_sequences: Vec<i32>,
    /// Their numbers, token after token.
    sequences: Vec<sys::llama_seq_id>,
    /// 1 where logits are wanted.
    wanted: Vec<i8>,
    /// The first position or sequence that llama.cpp's numbers cannot hold.
    too_large: Option<u32>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a token at a position (counted from 0) of each of `sequences`.
    /// `output` asks for its logits.
    pub fn add(&mut self, token: Token, position: u32, sequences: &[SeqId], output: bool) {
        self.tokens.push(token);
        let position = self.number(position);
        self.positions.push(position);
        self.n_sequences
            .push(i32::try_from(sequences.len()).unwrap_or(i32::MAX));
        for &sequence in sequences {
            let sequence = self.number(sequence);
            self.sequences.push(sequence);
        }
        self.wanted.push(output.into());
    }

    fn number(&mut self, number: u32) -> i32 {
        i32::try_from(number).unwrap_or_else(|_| {
            self.too_large.get_or_insert(number);
            0
        })
    }

    /// Empties the batch, to fill it again.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.n_sequences.clear();
        self.sequences.clear();
        self.wanted.clear();
        self.too_large = None;
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Number of tokens whose logits are wanted.
    pub fn n_outputs(&self) -> usize {
        self.wanted.iter().filter(|&&wanted| wanted != 0).count()
    }

    pub(crate) fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// The position behind the last of all sequences.
    pub(crate) fn end(&self) -> u32 {
        let last = self.positions.iter().max();
        last.map_or(0, |&last| last.unsigned_abs().saturating_add(1))
    }

    /// Where the tokens stand whose logits are wanted.
    pub(crate) fn outputs(&self) -> impl Iterator<Item = i32> {
        (0..)
            .zip(&self.wanted)
            .filter_map(|(at, &wanted)| (wanted != 0).then_some(at))
    }

    /// Refuses sequences that a context does not have.
    pub(crate) fn check_sequences(&self, n_seq_max: u32) -> Result<(), BatchError> {
        if let Some(number) = self.too_large {
            return Err(BatchError::TooLarge(number));
        }
        if self.n_sequences.contains(&0) {
            return Err(BatchError::NoSequence);
        }
        let unknown = |sequence: &&i32| sequence.unsigned_abs() >= n_seq_max;
        match self.sequences.iter().find(unknown) {
            Some(&sequence) => Err(BatchError::UnknownSequence {
                sequence,
                n_seq_max,
            }),
            None => Ok(()),
        }
    }

    /// Hands llama.cpp's view of the batch, `len` tokens long, to `call`.
    pub(crate) fn with_raw<T>(&self, len: i32, call: impl FnOnce(&mut sys::llama_batch) -> T) -> T {
        // llama.cpp takes mutable pointers, which it does not write to.
        let mut tokens = self.tokens.clone();
        let mut positions = self.positions.clone();
        let mut n_sequences = self.n_sequences.clone();
        let mut sequences = self.sequences.clone();
        let mut wanted = self.wanted.clone();
        let mut rest = sequences.as_mut_slice();
        let mut of_token: Vec<*mut sys::llama_seq_id> = Vec::with_capacity(tokens.len());
        for &n in &n_sequences {
            let (own, others) = rest.split_at_mut(usize::try_from(n).unwrap_or(0));
            of_token.push(own.as_mut_ptr());
            rest = others;
        }
        call(&mut sys::llama_batch {
            n_tokens: len,
            token: tokens.as_mut_ptr(),
            embd: std::ptr::null_mut(),
            pos: positions.as_mut_ptr(),
            n_seq_id: n_sequences.as_mut_ptr(),
            seq_id: of_token.as_mut_ptr(),
            logits: wanted.as_mut_ptr(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_has_its_own_sequences() {
        let mut batch = Batch::new();
        batch.add(5, 0, &[0, 2], false);
        batch.add(6, 1, &[1], true);
        batch.add(7, 1, &[0, 1, 2], true);
        let seen = batch.with_raw(3, |raw| {
            (0..3)
                .map(|i| {
                    // SAFETY: three tokens were added, with 2, 1 and 3
                    // sequences.
                    unsafe {
                        let n = *raw.n_seq_id.add(i) as usize;
                        std::slice::from_raw_parts(*raw.seq_id.add(i), n).to_vec()
                    }
                })
                .collect::<Vec<_>>()
        });
        assert_eq!(seen, [vec![0, 2], vec![1], vec![0, 1, 2]]);
        assert_eq!(batch.outputs().collect::<Vec<_>>(), [1, 2]);
        batch.clear();
        assert!(batch.is_empty() && batch.n_outputs() == 0);
    }

    #[test]
    fn what_llama_cpp_cannot_count_is_refused() {
        let mut batch = Batch::new();
        batch.add(5, u32::MAX, &[0], false);
        let too_large = Err(BatchError::TooLarge(u32::MAX));
        assert_eq!(batch.check_sequences(1), too_large);
        batch.clear();
        batch.add(5, 0, &[u32::MAX], false);
        assert_eq!(batch.check_sequences(u32::MAX), too_large);
        batch.clear();
        batch.add(5, 0, &[], false);
        assert_eq!(batch.check_sequences(1), Err(BatchError::NoSequence));
        batch.clear();
        batch.add(5, 0, &[1], false);
        assert_eq!(
            batch.check_sequences(1),
            Err(BatchError::UnknownSequence {
                sequence: 1,
                n_seq_max: 1
            })
        );
        assert_eq!(batch.check_sequences(2), Ok(()));
    }
}
