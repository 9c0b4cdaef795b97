//! Plans in their older form, version 1, which is still read: what a plan says
//! of units, in two lists.

use serde_json::{Value, json};

/// `plan`, which only shares and drops units, as version 1.
#[track_caller]
pub fn plan_v1(plan: &Value) -> Value {
    assert_eq!(plan["version"], 2, "{plan}");
    let edits = |kind: &str| -> Vec<Value> {
        let edits = plan["edits"].as_array().unwrap().iter();
        edits.filter_map(|edit| edit.get(kind).cloned()).collect()
    };
    let (mut aliases, dropped) = (edits("share"), edits("drop"));
    let all = plan["edits"].as_array().unwrap().len();
    assert_eq!(aliases.len() + dropped.len(), all, "{plan}");
    for alias in &mut aliases {
        for key in ["layer", "unit"] {
            let matched = format!("matched_{key}");
            if alias.get(&matched).is_none() {
                alias[matched] = alias[format!("donor_{key}")].clone();
            }
        }
    }
    let choice = &plan["choice"];
    let mut old = json!({
        "version": 1,
        "source": plan["source"],
        "match": choice["by"],
        "ratio": choice["ratio"],
        "units": choice["units"],
        "aliases": aliases,
        "dropped": dropped,
    });
    if let Some(saved) = plan.pointer("/expected/saved") {
        old["saved"] = saved.clone();
    }
    old
}
