//! Takes the attention maps out of a running model and keeps what their
//! cosines need: the dot products of all pairs of heads.
//!
//! A map of `ctx` tokens has `ctx`² numbers, and there are a thousand heads in
//! a 7B: they never are in memory together. Tokens are evaluated in chunks; of
//! each, the rows of all heads are collected, multiplied with each other and
//! forgotten. A row of a causal map has as many numbers as tokens before it,
//! and itself; the zeros after them add nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use headshare_runtime::callbacks::{Node, Observer, Op};

use headshare_convert::matching::Products;
use headshare_convert::model::AttentionMap;

/// llama.cpp's name of the softmax over the keys, which is the attention map.
const LABEL: &str = "kq_soft_max";

/// Bytes of attention rows that are collected at once, at most.
const CHUNK_BYTES: u64 = 256 << 20;

/// Numbers of a row that are multiplied in single precision before the sum is
/// taken in double precision.
const PIECE: usize = 4096;

/// Tokens to evaluate at once: a power of two, so that the rows of all heads
/// stay within [`CHUNK_BYTES`].
pub(super) fn chunk_tokens(heads: u64, ctx: u32) -> u32 {
    let row = heads.max(1) * u64::from(ctx) * size_of::<f32>() as u64;
    let fitting = (CHUNK_BYTES / row).clamp(8, 512) as u32;
    (1 << fitting.ilog2()).min(ctx)
}

/// The sums of one window.
pub(super) struct MapSums {
    /// The heads of each layer: the first one's number among all, and how many.
    layers: BTreeMap<u32, (usize, usize)>,
    heads: usize,
    ones: Vec<f64>,
    /// Dot products of the flattened maps.
    pub maps: Products,
    /// The same of the first columns only: what the first token gets.
    pub first: Products,
    /// Attention on the first token, over all heads and rows.
    pub first_mass: f64,
    chunk: Chunk,
}

/// The rows of the tokens that are evaluated now.
#[derive(Default)]
struct Chunk {
    /// Tokens before them.
    past: usize,
    tokens: usize,
    /// Consecutive rows that are multiplied together.
    pieces: Vec<Piece>,
    /// Where each row is: its piece, and the place in it.
    places: Vec<(usize, usize)>,
    /// Piece by piece, and in it head by head.
    rows: Vec<f32>,
    /// Head by head, the first number of each row.
    first: Vec<f32>,
    seen: BTreeSet<u32>,
    problem: Option<(u32, String)>,
}

#[derive(Clone, Copy)]
struct Piece {
    /// Numbers of each head before it, in this chunk.
    start: usize,
    /// Numbers of each head in it.
    len: usize,
}

impl MapSums {
    pub fn new(map: &AttentionMap) -> Self {
        let mut layers = BTreeMap::new();
        let mut heads = 0;
        for layer in &map.layers {
            let count = layer.n_head as usize;
            layers.insert(layer.layer, (heads, count));
            heads += count;
        }
        Self {
            layers,
            heads,
            ones: vec![1.0; heads],
            maps: Products::new(heads),
            first: Products::new(heads),
            first_mass: 0.0,
            chunk: Chunk::default(),
        }
    }

    /// Forgets the window before.
    pub fn clear(&mut self) {
        self.maps.clear();
        self.first.clear();
        self.first_mass = 0.0;
    }

    /// Gets ready for `tokens` tokens after `past` others.
    pub fn begin(&mut self, past: usize, tokens: usize) {
        let chunk = &mut self.chunk;
        (chunk.past, chunk.tokens) = (past, tokens);
        chunk.pieces.clear();
        chunk.places.clear();
        chunk.seen.clear();
        chunk.problem = None;
        let mut total = 0;
        for row in 0..tokens {
            let len = past + row + 1;
            match chunk.pieces.last_mut() {
                Some(piece) if piece.len + len <= PIECE => piece.len += len,
                _ => chunk.pieces.push(Piece { start: total, len }),
            }
            let piece = chunk.pieces.len() - 1;
            chunk
                .places
                .push((piece, total - chunk.pieces[piece].start));
            total += len;
        }
        // Every number is written before it is read.
        chunk.rows.resize(total * self.heads, 0.0);
        chunk.first.resize(tokens * self.heads, 0.0);
    }

    /// Adds the chunk to the sums.
    ///
    /// # Errors
    /// With the layer and what is wrong with it.
    pub fn finish(&mut self) -> Result<(), (u32, String)> {
        let chunk = &mut self.chunk;
        if let Some(problem) = chunk.problem.take() {
            return Err(problem);
        }
        if let Some(&layer) = self.layers.keys().find(|l| !chunk.seen.contains(l)) {
            let problem = "llama.cpp computes no softmax attention map there".to_owned();
            return Err((layer, problem));
        }
        for piece in &chunk.pieces {
            let rows = &chunk.rows[piece.start * self.heads..][..piece.len * self.heads];
            self.maps.add(rows, piece.len, &self.ones);
        }
        self.first.add(&chunk.first, chunk.tokens, &self.ones);
        self.first_mass += chunk.first.iter().map(|&p| f64::from(p)).sum::<f64>();
        Ok(())
    }

    fn take(&mut self, node: &Node<'_>, layer: u32) -> Result<(), String> {
        let (first_head, heads) = self.layers[&layer];
        let chunk = &mut self.chunk;
        let [columns, rows, found, streams] = node.dims();
        let needed = (chunk.past + chunk.tokens) as u64;
        if (rows, found, streams) != (chunk.tokens as u64, heads as u64, 1) || columns < needed {
            return Err(format!(
                "its attention map has the shape {:?}; {} tokens and {heads} heads were expected",
                node.dims(),
                chunk.tokens
            ));
        }
        let map = node.f32s().map_err(|e| e.to_string())?;
        for (i, row) in map.chunks_exact(columns as usize).enumerate() {
            let (head, token) = (first_head + i / chunk.tokens, i % chunk.tokens);
            let row = &row[..chunk.past + token + 1];
            if !row.iter().all(|p| p.is_finite()) {
                return Err("its attention is not finite".to_owned());
            }
            let (piece, offset) = chunk.places[token];
            let Piece { start, len } = chunk.pieces[piece];
            let at = start * self.heads + head * len + offset;
            chunk.rows[at..at + row.len()].copy_from_slice(row);
            chunk.first[head * chunk.tokens + token] = row[0];
        }
        Ok(())
    }
}

impl Observer for MapSums {
    fn wants(&mut self, node: &Node<'_>) -> bool {
        // Views carry the name, too.
        node.op() == Op::SOFT_MAX
            && node
                .layer_of(LABEL)
                .is_some_and(|layer| self.layers.contains_key(&layer))
    }

    fn observe(&mut self, node: &Node<'_>) -> ControlFlow<()> {
        let layer = node.layer_of(LABEL).expect("what was wanted has a layer");
        match self.take(node, layer) {
            Ok(()) => {
                self.chunk.seen.insert(layer);
                ControlFlow::Continue(())
            }
            Err(problem) => {
                self.chunk.problem = Some((layer, problem));
                ControlFlow::Break(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_powers_of_two_within_the_bound() {
        for (heads, ctx, tokens) in [
            (72, 512, 512),
            (270, 512, 256),
            (1024, 512, 128),
            (5120, 512, 16),
            (1024, 4096, 16),
            (100_000, 131_072, 8),
            (4, 2, 2),
        ] {
            assert_eq!(chunk_tokens(heads, ctx), tokens, "{heads} heads, {ctx}");
        }
    }
}
