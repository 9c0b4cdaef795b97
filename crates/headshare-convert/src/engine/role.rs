//! What a matrix is for, by its name.

use crate::model::in_layer;

/// What a matrix is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// `attn_q`.
    Query,
    /// `attn_k`.
    Key,
    /// `attn_v`.
    Value,
    /// `attn_qkv`: the three in one.
    QueryKeyValue,
    /// `attn_output`.
    AttentionOutput,
    /// `ffn_gate`.
    Gate,
    /// `ffn_up`.
    Up,
    /// Gate and up in one, as phi3's `ffn_up`.
    GateUp,
    /// `ffn_down`.
    Down,
    /// `ffn_gate_inp`: which experts a token goes to.
    Router,
    /// `ffn_gate_exps`.
    ExpertGate,
    /// `ffn_up_exps`.
    ExpertUp,
    /// `ffn_gate_up_exps`.
    ExpertGateUp,
    /// `ffn_down_exps`.
    ExpertDown,
    /// `ffn_gate_shexp`, of the expert that all tokens go to.
    SharedGate,
    /// `ffn_up_shexp`.
    SharedUp,
    /// `ffn_down_shexp`.
    SharedDown,
    /// The output head: `output`, or `token_embd` where that is used as such.
    Head,
    /// What single architectures have beside these.
    Other,
}

/// Names of the matrices of a layer.
const OF_LAYERS: &[(&str, Role)] = &[
    ("attn_q", Role::Query),
    ("attn_k", Role::Key),
    ("attn_v", Role::Value),
    ("attn_qkv", Role::QueryKeyValue),
    ("attn_output", Role::AttentionOutput),
    ("ffn_gate", Role::Gate),
    ("ffn_up", Role::Up),
    ("ffn_down", Role::Down),
    ("ffn_gate_inp", Role::Router),
    ("ffn_gate_exps", Role::ExpertGate),
    ("ffn_up_exps", Role::ExpertUp),
    ("ffn_gate_up_exps", Role::ExpertGateUp),
    ("ffn_down_exps", Role::ExpertDown),
    ("ffn_gate_shexp", Role::SharedGate),
    ("ffn_up_shexp", Role::SharedUp),
    ("ffn_down_shexp", Role::SharedDown),
];

impl Role {
    /// The layer and the role of the matrix called `name`.
    pub fn of(name: &str) -> (Option<u32>, Self) {
        let stem = name.strip_suffix(".weight").unwrap_or(name);
        if stem == "output" || stem == "token_embd" {
            return (None, Self::Head);
        }
        let Some((layer, stem)) = in_layer(stem) else {
            return (None, Self::Other);
        };
        let known = OF_LAYERS.iter().find(|(known, _)| *known == stem);
        let role = known.map_or(Self::Other, |(_, role)| *role);
        (Some(layer), role)
    }

    /// Whether its output is added to the residual stream.
    pub fn writes_to_stream(self) -> bool {
        matches!(
            self,
            Self::AttentionOutput | Self::Down | Self::ExpertDown | Self::SharedDown
        )
    }
}
