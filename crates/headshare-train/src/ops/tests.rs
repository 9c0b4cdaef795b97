//! Gradients of every operation against finite differences, ours and candle's, and
//! both against each other.
