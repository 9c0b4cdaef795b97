//! Text to tokens and back, with a model's own tokenizer.

use std::path::Path;
use std::sync::Arc;

use ggml_sys as sys;

use crate::guard;

/// A token's number in the model's vocabulary.
pub type Token = sys::llama_token;

/// Why text could not be turned into tokens, or tokens into text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VocabError {
    /// The file holds no tokenizer.
    #[error("the model has no vocabulary (tokenizer.ggml.model is \"none\")")]
    NoVocabulary,
    /// A token that the vocabulary does not have.
    #[error("token {token} is outside the vocabulary of {n_tokens} tokens")]
    UnknownToken {
        /// The token.
        token: Token,
        /// The vocabulary's size.
        n_tokens: i32,
    },
    /// More text or tokens than llama.cpp can count.
    #[error("the text is too long for llama.cpp's tokenizer (2 GiB)")]
    TooLong,
    /// llama.cpp's tokenizer gave up; mostly a damaged vocabulary.
    #[error("llama.cpp's tokenizer failed: {0}")]
    Failed(String),
}

/// A model's vocabulary.
#[derive(Clone, Copy)]
pub struct Vocab<'m> {
    raw: *const sys::llama_vocab,
    /// The model's file, for what there is to say about it.
    file: &'m Arc<Path>,
}

impl<'m> Vocab<'m> {
    /// The vocabulary of `model`, which was loaded from `file`.
    ///
    /// # Safety
    /// `model` is a loaded model and is not freed while `'m` lasts.
    pub(crate) unsafe fn new(model: *const sys::llama_model, file: &'m Arc<Path>) -> Self {
        Self {
            // SAFETY: the model is alive; its vocabulary lives as long.
            raw: unsafe { sys::llama_model_get_vocab(model) },
            file,
        }
    }

    pub(crate) fn as_ptr(self) -> *const sys::llama_vocab {
        self.raw
    }

    pub(crate) fn file(self) -> &'m Arc<Path> {
        self.file
    }

    /// Number of tokens; 0 when the file holds no tokenizer.
    pub fn n_tokens(self) -> i32 {
        // SAFETY: `raw` belongs to the living model.
        unsafe { sys::llama_vocab_n_tokens(self.raw) }
    }

    /// Whether there is a tokenizer at all.
    pub fn exists(self) -> bool {
        // SAFETY: as above.
        unsafe { sys::llama_vocab_type(self.raw) != sys::LLAMA_VOCAB_TYPE_NONE }
    }

    /// The token that begins a text, if the model has one.
    pub fn bos(self) -> Option<Token> {
        // SAFETY: as above.
        real(unsafe { sys::llama_vocab_bos(self.raw) })
    }

    /// The token that ends a text, if the model has one.
    pub fn eos(self) -> Option<Token> {
        // SAFETY: as above.
        real(unsafe { sys::llama_vocab_eos(self.raw) })
    }

    /// The token that the model wants in front of every text: [`Vocab::bos`], or
    /// none.
    pub fn leading_bos(self) -> Option<Token> {
        self.bos().filter(|_| self.adds_bos())
    }

    fn adds_bos(self) -> bool {
        // SAFETY: as above.
        unsafe { sys::llama_vocab_get_add_bos(self.raw) }
    }

    /// Whether a token ends generation (end of text, end of turn, ...).
    pub fn is_eog(self, token: Token) -> bool {
        // SAFETY: as above; unknown tokens are just not in the set.
        unsafe { sys::llama_vocab_is_eog(self.raw, token) }
    }

    /// All tokens that [`Vocab::is_eog`] is true for.
    pub fn eog_tokens(self) -> Vec<Token> {
        (0..self.n_tokens())
            .filter(|&token| self.is_eog(token))
            .collect()
    }

    /// Tokens that the model's file says must never be generated.
    pub fn suppressed(self) -> &'m [Token] {
        let mut len = 0;
        // SAFETY: `raw` belongs to the living model, `len` is ours.
        let first = unsafe { sys::llama_vocab_get_suppress_tokens(self.raw, &mut len) };
        match usize::try_from(len) {
            // SAFETY: llama.cpp says that `len` tokens lie there; they belong
            // to the model and do not change.
            Ok(len) if len > 0 && !first.is_null() => unsafe {
                std::slice::from_raw_parts(first, len)
            },
            _ => &[],
        }
    }

    /// Turns text into tokens.
    ///
    /// `add_special` adds what the model wants around a text (BOS, EOS).
    /// `parse_special` reads control tokens (`<|im_start|>`) as such; without
    /// it they are plain text.
    pub fn tokenize(
        self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<Token>, VocabError> {
        if !self.exists() {
            return Err(VocabError::NoVocabulary);
        }
        let text_len = i32::try_from(text.len()).map_err(|_| VocabError::TooLong)?;
        let add_special = add_special && self.has_what_it_adds();
        // One token a byte and a few special ones is mostly enough.
        let mut tokens: Vec<Token> = vec![0; text.len().saturating_add(8)];
        loop {
            let room = i32::try_from(tokens.len()).map_err(|_| VocabError::TooLong)?;
            let mut count = 0;
            guard::call(self.file, |error, error_size| {
                // SAFETY: text and tokens are as long as stated; the vocabulary
                // is there and lives.
                unsafe {
                    guard::headshare_tokenize(
                        self.raw,
                        text.as_ptr().cast(),
                        text_len,
                        tokens.as_mut_ptr(),
                        room,
                        add_special,
                        parse_special,
                        &mut count,
                        error,
                        error_size,
                    )
                }
            })
            .map_err(VocabError::Failed)?;
            match fitted(count, tokens.len())? {
                Fit::Done(len) => {
                    tokens.truncate(len);
                    // Where one lacks that llama.cpp takes for granted.
                    return match tokens.iter().find(|&&token| self.check(token).is_err()) {
                        Some(token) => Err(VocabError::Failed(format!("it gives token {token}"))),
                        None => Ok(tokens),
                    };
                }
                Fit::Needs(len) => tokens.resize(len, 0),
            }
        }
    }

    /// The bytes of one token, which need not be whole characters. Control
    /// tokens are empty unless `special` asks for their names.
    pub fn token_to_piece(self, token: Token, special: bool) -> Result<Vec<u8>, VocabError> {
        self.check(token)?;
        let mut piece = vec![0u8; 32];
        loop {
            let room = i32::try_from(piece.len()).map_err(|_| VocabError::TooLong)?;
            let mut count = 0;
            guard::call(self.file, |error, error_size| {
                // SAFETY: the token is in the vocabulary, the buffer is as
                // long as stated.
                unsafe {
                    guard::headshare_token_to_piece(
                        self.raw,
                        token,
                        piece.as_mut_ptr().cast(),
                        room,
                        special,
                        &mut count,
                        error,
                        error_size,
                    )
                }
            })
            .map_err(VocabError::Failed)?;
            match fitted(count, piece.len())? {
                Fit::Done(len) => {
                    piece.truncate(len);
                    return Ok(piece);
                }
                Fit::Needs(len) => piece.resize(len, 0),
            }
        }
    }

    /// The text of tokens, without the special ones; what is not UTF-8 becomes
    /// U+FFFD.
    pub fn detokenize(self, tokens: &[Token]) -> Result<String, VocabError> {
        tokens.iter().try_for_each(|&token| self.check(token))?;
        let n_tokens = i32::try_from(tokens.len()).map_err(|_| VocabError::TooLong)?;
        let mut text = vec![0u8; tokens.len().saturating_mul(4).saturating_add(32)];
        loop {
            let room = i32::try_from(text.len()).map_err(|_| VocabError::TooLong)?;
            let mut count = 0;
            guard::call(self.file, |error, error_size| {
                // SAFETY: all tokens are in the vocabulary, both buffers are as
                // long as stated.
                unsafe {
                    guard::headshare_detokenize(
                        self.raw,
                        tokens.as_ptr(),
                        n_tokens,
                        text.as_mut_ptr().cast(),
                        room,
                        true,
                        false,
                        &mut count,
                        error,
                        error_size,
                    )
                }
            })
            .map_err(VocabError::Failed)?;
            match fitted(count, text.len())? {
                Fit::Done(len) => {
                    text.truncate(len);
                    return Ok(String::from_utf8_lossy(&text).into_owned());
                }
                Fit::Needs(len) => text.resize(len, 0),
            }
        }
    }

    fn check(self, token: Token) -> Result<(), VocabError> {
        if !self.exists() {
            return Err(VocabError::NoVocabulary);
        }
        let n_tokens = self.n_tokens();
        if (0..n_tokens).contains(&token) {
            Ok(())
        } else {
            Err(VocabError::UnknownToken { token, n_tokens })
        }
    }

    /// llama.cpp asserts that the tokens which it is told to add exist.
    fn has_what_it_adds(self) -> bool {
        // SAFETY: `raw` belongs to the living model.
        let (add_eos, add_sep, sep) = unsafe {
            (
                sys::llama_vocab_get_add_eos(self.raw),
                sys::llama_vocab_get_add_sep(self.raw),
                real(sys::llama_vocab_sep(self.raw)),
            )
        };
        // SAFETY: as above.
        let kind = unsafe { sys::llama_vocab_type(self.raw) };
        // WordPiece adds both ends without asking.
        let word_piece = kind == sys::LLAMA_VOCAB_TYPE_WPM;
        (self.bos().is_some() || !(self.adds_bos() || word_piece))
            && (self.eos().is_some() || !add_eos)
            && (sep.is_some() || !(add_sep || word_piece))
    }
}

enum Fit {
    Done(usize),
    Needs(usize),
}

/// Reads llama.cpp's answer: a count, or minus the count that would be needed.
fn fitted(count: i32, room: usize) -> Result<Fit, VocabError> {
    match usize::try_from(count) {
        Ok(len) if len <= room => Ok(Fit::Done(len)),
        Ok(_) => Err(VocabError::Failed("it wrote more than there is".into())),
        Err(_) if count == i32::MIN => Err(VocabError::TooLong),
        Err(_) => match usize::try_from(count.unsigned_abs()) {
            Ok(len) if len > room => Ok(Fit::Needs(len)),
            _ => Err(VocabError::Failed("it asks for no more room".into())),
        },
    }
}

fn real(token: Token) -> Option<Token> {
    (token >= 0).then_some(token)
}
