//! Contexts and continuations as tokens, the way lm-evaluation-harness makes
//! them.
//!
//! White space at the end of the context goes to the continuation; context and
//! continuation are tokenized together, and the continuation's tokens are those
//! after as many as the context alone has. What is longer than the model's
//! context loses tokens at its left end. The harness refuses the rare
//! continuation that melts into its context's last token; here its last token
//! is scored.

use headshare_runtime::{ContextError, Token, Vocab, VocabError};

use super::item::{Item, Origin, Pair, Task};

/// Why a task's items cannot be scored with a model.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// The tokenizer fails.
    #[error(transparent)]
    Vocab(#[from] VocabError),
    /// The model fails.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// A continuation without context, and no token to begin a text with.
    #[error("{origin}: the context is empty, and the model has no token that begins a text")]
    NoFirstToken {
        /// The item's.
        origin: Origin,
    },
    /// The tokenizer makes nothing of a continuation.
    #[error("{origin}: the tokenizer makes no tokens of the continuation {text:?}")]
    NoTokens {
        /// The item's.
        origin: Origin,
        /// The continuation.
        text: String,
    },
    /// A continuation that does not fit in the context by itself.
    #[error(
        "{origin}: a continuation of {tokens} tokens does not fit in a context of {n_ctx} tokens"
    )]
    TooLong {
        /// The item's.
        origin: Origin,
        /// Its length.
        tokens: usize,
        /// What there is.
        n_ctx: usize,
    },
    /// The model computes no numbers.
    #[error("{origin}: the model's probabilities are not numbers (NaN)")]
    NotANumber {
        /// The item's.
        origin: Origin,
    },
}

/// A tokenizer, as far as scoring needs it.
pub trait Tokenizer {
    /// The tokens of a text and nothing else.
    fn tokens(&self, text: &str) -> Result<Vec<Token>, VocabError>;
    /// The token that the model wants in front of every text.
    fn first(&self) -> Option<Token>;
    /// The token that stands for an empty context.
    fn instead_of_nothing(&self) -> Option<Token>;
}

impl Tokenizer for Vocab<'_> {
    fn tokens(&self, text: &str) -> Result<Vec<Token>, VocabError> {
        self.tokenize(text, false, false)
    }

    fn first(&self) -> Option<Token> {
        self.leading_bos()
    }

    fn instead_of_nothing(&self) -> Option<Token> {
        self.bos().or(self.eos())
    }
}

/// An item's choices as tokens: what all begin with, and how each goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    stem: Vec<Token>,
    branches: Vec<Branch>,
    /// Whether tokens were cut off at the left end.
    pub truncated: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Branch {
    tail: Vec<Token>,
    /// Tokens at the end whose probability is wanted.
    scored: usize,
}

impl Encoded {
    /// From whole sequences and the number of tokens to score at the end of
    /// each.
    ///
    /// # Panics
    /// Where nothing stands before what is to be scored.
    pub fn new(sequences: Vec<(Vec<Token>, usize)>) -> Self {
        let first = sequences.first().map_or(&[][..], |(tokens, _)| tokens);
        let shared = (sequences.iter())
            .map(|(tokens, _)| common(first, tokens))
            .min()
            .unwrap_or(0);
        Self {
            stem: first[..shared].to_vec(),
            branches: (sequences.iter())
                .map(|(tokens, scored)| {
                    assert!((1..tokens.len()).contains(scored), "something to score");
                    Branch {
                        tail: tokens[shared..].to_vec(),
                        scored: *scored,
                    }
                })
                .collect(),
            truncated: false,
        }
    }

    /// Number of choices.
    pub fn n_choices(&self) -> usize {
        self.branches.len()
    }

    /// Tokens of a choice with its context.
    pub fn len(&self, choice: usize) -> usize {
        self.stem.len() + self.branches[choice].tail.len()
    }

    /// Where in it the tokens begin whose probability is wanted.
    pub fn scored_from(&self, choice: usize) -> usize {
        self.len(choice) - self.branches[choice].scored
    }

    /// A token of a choice with its context.
    pub fn token(&self, choice: usize, at: usize) -> Token {
        match at.checked_sub(self.stem.len()) {
            None => self.stem[at],
            Some(at) => self.branches[choice].tail[at],
        }
    }

    /// The tokens at the beginning that are the same for all choices and
    /// predict nothing that is scored.
    pub fn lead(&self) -> &[Token] {
        let scored = (0..self.n_choices()).map(|c| self.scored_from(c)).min();
        let end = scored.map_or(0, |at| at - 1).min(self.stem.len());
        &self.stem[..end]
    }

    /// One choice alone.
    pub fn only(&self, choice: usize) -> Self {
        Self {
            stem: self.stem.clone(),
            branches: vec![self.branches[choice].clone()],
            truncated: self.truncated,
        }
    }
}

/// How many tokens `a` and `b` begin with in common.
pub(super) fn common(a: &[Token], b: &[Token]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// All items of a task as tokens, for a model that can see `n_ctx` of them.
///
/// # Errors
/// [`ChoiceError`], naming where the item stands.
pub fn encode(
    task: &Task,
    tokenizer: &impl Tokenizer,
    n_ctx: usize,
) -> Result<Vec<Encoded>, ChoiceError> {
    task.items()
        .map(|item| encode_item(item, tokenizer, n_ctx))
        .collect()
}

fn encode_item(
    item: &Item,
    tokenizer: &impl Tokenizer,
    n_ctx: usize,
) -> Result<Encoded, ChoiceError> {
    let mut truncated = false;
    // Most items have one context for all choices.
    let mut known: Option<(String, Vec<Token>)> = None;
    let mut sequences = Vec::with_capacity(item.pairs.len());
    for pair in &item.pairs {
        let (context, continuation) = split(&item.lead, pair);
        let context_tokens = match &known {
            Some((text, tokens)) if *text == context => tokens.clone(),
            _ => with_first(tokenizer, &context)?,
        };
        let mut tokens = with_first(tokenizer, &format!("{context}{continuation}"))?;
        if tokens.len() <= usize::from(tokenizer.first().is_some()) {
            let (origin, text) = (item.origin.clone(), continuation);
            return Err(ChoiceError::NoTokens { origin, text });
        }
        let mut from = context_tokens.len().min(tokens.len() - 1);
        known = Some((context, context_tokens));
        if from == 0 {
            let Some(token) = tokenizer.instead_of_nothing() else {
                let origin = item.origin.clone();
                return Err(ChoiceError::NoFirstToken { origin });
            };
            tokens.insert(0, token);
            from = 1;
        }
        let scored = tokens.len() - from;
        if scored > n_ctx {
            return Err(ChoiceError::TooLong {
                origin: item.origin.clone(),
                tokens: scored,
                n_ctx,
            });
        }
        // The last token is predicted and needs no place.
        if let Some(cut) = tokens.len().checked_sub(n_ctx + 1).filter(|cut| *cut > 0) {
            tokens.drain(..cut);
            truncated = true;
        }
        sequences.push((tokens, scored));
    }
    let encoded = Encoded::new(sequences);
    Ok(Encoded {
        truncated,
        ..encoded
    })
}

/// Context and continuation, with the white space between them in the latter.
fn split(lead: &str, pair: &Pair) -> (String, String) {
    let mut context = format!("{lead}{}", pair.context);
    let end = context.trim_end().len();
    let continuation = format!("{}{}", &context[end..], pair.continuation);
    context.truncate(end);
    (context, continuation)
}

fn with_first(tokenizer: &impl Tokenizer, text: &str) -> Result<Vec<Token>, VocabError> {
    let mut tokens: Vec<Token> = tokenizer.first().into_iter().collect();
    if !text.is_empty() {
        tokens.extend(tokenizer.tokens(text)?);
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// One token a character; `th` is one as well.
    struct Letters {
        first: Option<Token>,
        instead: Option<Token>,
    }

    const TH: Token = 1000;

    impl Tokenizer for Letters {
        fn tokens(&self, text: &str) -> Result<Vec<Token>, VocabError> {
            let text = text.replace("th", "\u{1}");
            let token = |c| if c == '\u{1}' { TH } else { c as Token };
            Ok(text.chars().map(token).collect())
        }
        fn first(&self) -> Option<Token> {
            self.first
        }
        fn instead_of_nothing(&self) -> Option<Token> {
            self.instead
        }
    }

    const PLAIN: Letters = Letters {
        first: None,
        instead: Some(2),
    };

    fn item(context: &str, choices: &[&str]) -> Item {
        let choices: Vec<_> = choices.iter().map(ToString::to_string).collect();
        let origin = Origin {
            line: 7,
            ..Origin::default()
        };
        Item {
            origin,
            ..Item::of_choices(context, &choices, 0)
        }
    }

    fn text(encoded: &Encoded, choice: usize) -> (String, usize) {
        let shown = |at| {
            let token = encoded.token(choice, at);
            char::from_u32(token.unsigned_abs()).filter(|c| !c.is_control())
        };
        let text = (0..encoded.len(choice)).filter_map(shown).collect();
        (text, encoded.scored_from(choice))
    }

    #[test]
    fn the_continuation_is_what_follows_the_context() {
        let encoded = encode_item(&item("ab", &["cd", "e"]), &PLAIN, 99).unwrap();
        assert_eq!(text(&encoded, 0), ("ab cd".into(), 2));
        assert_eq!(text(&encoded, 1), ("ab e".into(), 2));
        // The token before the continuation predicts: it is not in the lead.
        assert_eq!(encoded.lead().len(), 1);
        // White space at the context's end is scored with the continuation.
        let encoded = encode_item(&item("ab \n", &["cd"]), &PLAIN, 99).unwrap();
        assert_eq!(encoded.scored_from(0), 2);
        assert_eq!(encoded.len(0), 6);
    }

    #[test]
    fn a_first_token_belongs_to_the_context() {
        let tokenizer = Letters {
            first: Some(1),
            instead: Some(2),
        };
        let encoded = encode_item(&item("ab", &["c"]), &tokenizer, 99).unwrap();
        assert_eq!((encoded.token(0, 0), encoded.scored_from(0)), (1, 3));
        let encoded = encode_item(&item("", &["c"]), &tokenizer, 99).unwrap();
        assert_eq!((encoded.token(0, 0), encoded.scored_from(0)), (1, 1));
    }

    #[test]
    fn an_empty_context_is_a_token_of_its_own() {
        let encoded = encode_item(&item("", &["c"]), &PLAIN, 99).unwrap();
        assert_eq!((encoded.token(0, 0), encoded.scored_from(0)), (2, 1));
        let none = Letters {
            first: None,
            instead: None,
        };
        let error = encode_item(&item("", &["c"]), &none, 99).unwrap_err();
        assert!(matches!(error, ChoiceError::NoFirstToken { origin } if origin.line == 7));
    }

    #[test]
    fn a_continuation_that_melts_into_the_context_is_scored_by_its_last_token() {
        let mut item = item("at", &["x"]);
        item.pairs[0].continuation = "h".into();
        let encoded = encode_item(&item, &PLAIN, 99).unwrap();
        assert_eq!((encoded.len(0), encoded.scored_from(0)), (2, 1));
        assert_eq!(encoded.token(0, 1), TH);
    }

    #[test]
    fn what_is_too_long_loses_its_left_end() {
        let encoded = encode_item(&item("abcdef", &["gh", "g"]), &PLAIN, 5).unwrap();
        assert!(encoded.truncated);
        assert_eq!(text(&encoded, 0), ("def gh".into(), 3));
        assert_eq!(text(&encoded, 1), ("cdef g".into(), 4));
        let fits = encode_item(&item("abcdef", &["gh"]), &PLAIN, 8).unwrap();
        assert!(!fits.truncated);
        let error = encode_item(&item("a", &["ghijk"]), &PLAIN, 5).unwrap_err();
        assert_eq!(
            error.to_string(),
            "line 7: a continuation of 6 tokens does not fit in a context of 5 tokens"
        );
    }

    #[test]
    fn the_lead_stands_in_front_of_all_contexts() {
        let mut item = item("b", &["c", "d"]);
        item.lead = Arc::from("xyz");
        let encoded = encode_item(&item, &PLAIN, 99).unwrap();
        assert_eq!(text(&encoded, 1), ("xyzb d".into(), 4));
        assert_eq!(encoded.lead().len(), 3);
        assert_eq!(text(&encoded.only(1), 0), ("xyzb d".into(), 4));
    }
}
