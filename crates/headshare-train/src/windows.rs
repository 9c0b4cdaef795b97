//! Tokens as windows of one length.

use crate::error::TrainError;

/// Windows of a text, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    tokens: Vec<u32>,
    length: usize,
}

impl Windows {
    /// `tokens` as windows of `length` each; at least one, of two tokens or more.
    ///
    /// # Errors
    /// When they are no whole windows.
    pub fn new(tokens: Vec<u32>, length: usize) -> Result<Self, TrainError> {
        if length < 2 || tokens.is_empty() || !tokens.len().is_multiple_of(length) {
            let problem = format!("{} tokens as windows of {length}", tokens.len());
            return Err(TrainError::Windows(problem));
        }
        Ok(Self { tokens, length })
    }

    /// All tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens of a window.
    pub fn length(&self) -> usize {
        self.length
    }

    /// How many windows there are.
    pub fn count(&self) -> usize {
        self.tokens.len() / self.length
    }

    /// Those numbered `which`, in this order.
    pub fn pick(&self, which: &[usize]) -> Self {
        let window = |&i: &usize| &self.tokens[i * self.length..(i + 1) * self.length];
        Self {
            tokens: which.iter().flat_map(window).copied().collect(),
            length: self.length,
        }
    }

    /// Refuses tokens that are not in the vocabulary.
    pub(crate) fn check(&self, vocabulary: usize) -> Result<(), TrainError> {
        match self
            .tokens
            .iter()
            .find(|&&token| token as usize >= vocabulary)
        {
            Some(token) => Err(TrainError::Windows(format!(
                "token {token} is outside the vocabulary of {vocabulary} tokens"
            ))),
            None => Ok(()),
        }
    }
}
