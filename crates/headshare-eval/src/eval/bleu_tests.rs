//! Against figures of the PyPI package `sacrebleu` 2.6.0.
//!
//! They were printed once by `BLEU().corpus_score(hypotheses, references)`
//! (13a, exp smoothing: its defaults) with the segments below, the references
//! turned into one list for each place of a reference, with `None` where a
//! segment has fewer; and by `Tokenizer13a()(text.rstrip()).split()`.

use super::*;

/// A corpus and what sacreBLEU says of it.
struct Case {
    name: &'static str,
    hypotheses: &'static [&'static str],
    references: &'static [&'static [&'static str]],
    bleu: f64,
    precisions: [f64; 4],
    brevity_penalty: f64,
    lengths: (usize, usize),
}

const CASES: &[Case] = &[
    Case {
        name: "plain",
        hypotheses: &[
            "The cat sat on the mat.",
            "It was a bright cold day in April.",
        ],
        references: &[
            &["The cat is sitting on the mat."],
            &["It was a bright cold day in April, and the clocks were striking."],
        ],
        bleu: 47.56857520882429,
        precisions: [93.75, 78.57142857142857, 66.66666666666667, 60.0],
        brevity_penalty: 0.645648526427892,
        lengths: (16, 23),
    },
    Case {
        name: "identical",
        hypotheses: &["Hello, world! This is it."],
        references: &[&["Hello, world! This is it."]],
        bleu: 100.00000000000004,
        precisions: [100.0, 100.0, 100.0, 100.0],
        brevity_penalty: 1.0,
        lengths: (8, 8),
    },
    Case {
        name: "no match",
        hypotheses: &["abc def ghi jkl mno"],
        references: &[&["one two three four five"]],
        bleu: 0.0,
        precisions: [0.0, 0.0, 0.0, 0.0],
        brevity_penalty: 1.0,
        lengths: (5, 5),
    },
    Case {
        name: "empty hypothesis",
        hypotheses: &[""],
        references: &[&["The cat sat on the mat."]],
        bleu: 0.0,
        precisions: [0.0, 0.0, 0.0, 0.0],
        brevity_penalty: 0.0,
        lengths: (0, 7),
    },
    Case {
        name: "one empty of three",
        hypotheses: &[
            "",
            "The cat sat on the mat today.",
            "A dog barked at the moon all night.",
        ],
        references: &[
            &["Nothing."],
            &["The cat sat on the mat."],
            &["A dog barked at the moon the whole night."],
        ],
        bleu: 60.69022847790844,
        precisions: [
            88.23529411764706,
            73.33333333333333,
            61.53846153846154,
            54.54545454545455,
        ],
        brevity_penalty: 0.8890097654027757,
        lengths: (17, 19),
    },
    Case {
        name: "numbers",
        hypotheses: &[
            "It cost $1,234.56 in 1999-2000, i.e. 3.5% more.",
            "Call 555-1234, room 7.",
        ],
        references: &[
            &["It cost $1,234.56 in 1999-2000, that is 3.5% more."],
            &["Call 555-1234 , room 7 ."],
        ],
        bleu: 73.79567187406363,
        precisions: [84.0, 78.26086956521739, 71.42857142857143, 63.1578947368421],
        brevity_penalty: 1.0,
        lengths: (25, 23),
    },
    Case {
        name: "symbols",
        hypotheses: &["(a) [b] {c} <d> & e_f @ g/h \\ \"i\" 'j' k~l ^ m|n = o+p*q; r: s? t!"],
        references: &[&[
            "(a) [b] {c} <d> & e_f @ g/h \\ \"i\" 'j' k~l ^ m|n = o + p * q; r: s? t.",
        ]],
        bleu: 97.69961126936086,
        precisions: [
            97.77777777777777,
            97.72727272727273,
            97.67441860465117,
            97.61904761904762,
        ],
        brevity_penalty: 1.0,
        lengths: (45, 45),
    },
    Case {
        name: "entities",
        hypotheses: &["Tom &amp; Jerry &lt;3 &quot;cheese&quot; <skipped>now"],
        references: &[&["Tom & Jerry <3 \"cheese\" now and then"]],
        bleu: 80.07374029168083,
        precisions: [100.0, 100.0, 100.0, 100.0],
        brevity_penalty: 0.800737402916808,
        lengths: (9, 11),
    },
    Case {
        name: "unicode",
        hypotheses: &[
            "Der Straßenbahn\u{ad}fahrer grüßt — „sehr“ freundlich…",
            "これは ペン です 。",
            "naïve café\u{a0}du coin",
        ],
        references: &[
            &["Der Straßenbahnfahrer grüßt — „sehr“ herzlich…"],
            &["これは 青い ペン です 。"],
            &["naïve café du coin, là"],
        ],
        bleu: 39.005561852388595,
        precisions: [85.71428571428571, 63.63636363636363, 50.0, 20.0],
        brevity_penalty: 0.8071177470053894,
        lengths: (14, 17),
    },
    Case {
        name: "several references",
        hypotheses: &[
            "The quick brown fox jumped over the lazy dog.",
            "He said that he would come.",
        ],
        references: &[
            &[
                "The fast brown fox jumped over the lazy dog.",
                "A quick brown fox leapt over the lazy dog.",
            ],
            &[
                "He said he would come.",
                "He told us that he would come tomorrow.",
            ],
        ],
        bleu: 80.70557274927978,
        precisions: [
            100.0,
            86.66666666666667,
            76.92307692307692,
            63.63636363636363,
        ],
        brevity_penalty: 1.0,
        lengths: (17, 16),
    },
    Case {
        name: "different numbers of references",
        hypotheses: &["The quick brown fox jumped.", "He said that he would come."],
        references: &[
            &[
                "The fast brown fox jumped over it.",
                "A quick brown fox leapt.",
                "The quick fox jumped.",
            ],
            &["He said he would come."],
        ],
        bleu: 49.47995468576788,
        precisions: [
            92.3076923076923,
            81.81818181818181,
            55.55555555555556,
            14.285714285714286,
        ],
        brevity_penalty: 1.0,
        lengths: (13, 12),
    },
    Case {
        name: "two closest lengths",
        hypotheses: &["a b c d e"],
        references: &[&["a b c d e f g", "a b c"]],
        bleu: 100.00000000000004,
        precisions: [100.0, 100.0, 100.0, 100.0],
        brevity_penalty: 1.0,
        lengths: (5, 3),
    },
    Case {
        name: "shorter than four",
        hypotheses: &["a b", "c"],
        references: &[&["a b"], &["c"]],
        bleu: 0.0,
        precisions: [100.0, 100.0, 0.0, 0.0],
        brevity_penalty: 1.0,
        lengths: (3, 3),
    },
    Case {
        name: "no long match",
        hypotheses: &["a b x c d y e f", "g h"],
        references: &[&["a b z c d w e f"], &["g h"]],
        bleu: 20.205155046766233,
        precisions: [80.0, 50.0, 8.333333333333334, 5.0],
        brevity_penalty: 1.0,
        lengths: (10, 10),
    },
    Case {
        name: "one match",
        hypotheses: &["a q w r t y u"],
        references: &[&["a b c d e f g"]],
        bleu: 6.567274736060395,
        precisions: [14.285714285714286, 8.333333333333334, 5.0, 3.125],
        brevity_penalty: 1.0,
        lengths: (7, 7),
    },
    Case {
        name: "line breaks",
        hypotheses: &["state-\nof the art\nnow ", " two  spaces\tand tab "],
        references: &[&["stateof the art now"], &["two spaces and tab"]],
        bleu: 100.00000000000004,
        precisions: [100.0, 100.0, 100.0, 100.0],
        brevity_penalty: 1.0,
        lengths: (8, 8),
    },
    Case {
        name: "repeated",
        hypotheses: &["the the the the the the the"],
        references: &[&["the cat is on the mat"]],
        bleu: 7.809849842300637,
        precisions: [28.571428571428573, 8.333333333333334, 5.0, 3.125],
        brevity_penalty: 1.0,
        lengths: (7, 6),
    },
];

const TOKENS: &[(&str, &[&str])] = &[
    ("Hello, world.", &["Hello", ",", "world", "."]),
    (
        "1,234.56 and .5 or 5. 1-2 -3 a-b",
        &[
            "1,234.56", "and", ".", "5", "or", "5", ".", "1", "-", "2", "-3", "a-b",
        ],
    ),
    ("a..b ...", &["a", ".", ".", "b", ".", ".", "."]),
    ("it's 'so' (x)!", &["it's", "'so'", "(", "x", ")", "!"]),
    (
        "U.S.A., e.g. 3.",
        &[
            "U", ".", "S", ".", "A", ".", ",", "e", ".", "g", ".", "3", ".",
        ],
    ),
    ("$5%,", &["$", "5", "%", ","]),
    ("a,b.c", &["a", ",", "b", ".", "c"]),
    ("5,a b,5", &["5", ",", "a", "b", ",", "5"]),
    ("“quote”…", &["“quote”…"]),
    ("x &amp;lt; y", &["x", "<", "y"]),
    ("-\nx", &["x"]),
    ("9-\n8", &["98"]),
    ("a\u{1c}b\u{85}c", &["a", "b", "c"]),
];

#[track_caller]
fn assert_close(found: f64, wanted: f64, what: &str) {
    assert!(
        (found - wanted).abs() < 1e-9,
        "{what}: {found}, not {wanted}"
    );
}

#[test]
fn figures_are_those_of_sacrebleu() {
    for case in CASES {
        let mut counts = BleuCounts::default();
        for (hypothesis, references) in case.hypotheses.iter().zip(case.references) {
            counts.add(hypothesis, references);
        }
        let found = counts.bleu();
        assert_close(found.bleu, case.bleu, case.name);
        for (found, wanted) in found.precisions.iter().zip(case.precisions) {
            assert_close(*found, wanted, case.name);
        }
        assert_close(found.brevity_penalty, case.brevity_penalty, case.name);
        assert_eq!(
            (found.hypothesis_len, found.reference_len),
            case.lengths,
            "{}",
            case.name
        );
    }
}

#[test]
fn tokens_are_those_of_sacrebleu() {
    for (text, tokens) in TOKENS {
        assert_eq!(tokenize_13a(text), *tokens, "{text:?}");
    }
}

#[test]
fn nothing_at_all_is_zero() {
    assert_eq!(BleuCounts::default().bleu().bleu, 0.0);
    let mut counts = BleuCounts::default();
    counts.add::<&str>("a b c d", &[]);
    assert_eq!(counts.bleu().bleu, 0.0);
}
