//! METEOR against NLTK 3.9 (without WordNet, Snowball's stemmer) where its alignment has
//! as few chunks as ours, and by hand.

use super::*;

fn score(hypothesis: &str, references: &[&str], synonyms: &str) -> f64 {
    let mut meteor = Meteor::new(Synonyms::parse(synonyms));
    meteor.add(hypothesis, references);
    meteor.mean() / 100.0
}

#[track_caller]
fn close(found: f64, wanted: f64) {
    assert!((found - wanted).abs() < 1e-6, "{found} instead of {wanted}");
}

#[test]
fn scores_are_those_of_nltk() {
    close(
        score("the cat sat on the mat", &["the cat sat on the mat"], ""),
        0.997_685,
    );
    // Stems.
    close(
        score("running dogs barked loudly", &["a dog barks and runs"], ""),
        0.521_542,
    );
    close(score("nothing here", &["something else"], ""), 0.0);
    close(score("", &["a"], ""), 0.0);
}

#[test]
fn words_are_aligned_in_as_few_chunks_as_possible() {
    // 12 words of 18 and 16 in 4 chunks. (NLTK takes another "the", which makes 6 of them.)
    let action = "It is a guide to action that ensures that the military will forever heed \
                  Party commands";
    close(
        score(
            "It is a guide to action which ensures that the military always obeys the commands \
             of the party",
            &[
                action,
                "It is the guiding principle which guarantees the military forces always being \
                 under the command of the Party",
            ],
            "",
        ),
        0.727_023,
    );
    // "on the mat", "sat", "the cat".
    close(
        score("the cat sat on the mat", &["on the mat sat the cat"], ""),
        1.0 - 0.5 * (3.0f64 / 6.0).powi(3),
    );
    // "the a the" and "the", of five words each.
    close(
        score("the the the a the", &["the a the the b"], ""),
        0.8 * (1.0 - 0.5 * (2.0f64 / 4.0).powi(3)),
    );
}

#[test]
fn synonyms_come_last_and_only_from_the_list() {
    let of = |synonyms: &str| score("a big house", &["a large house"], synonyms);
    let of_two = 2.0 / 3.0 * (1.0 - 0.5);
    close(of(""), of_two);
    close(of("big huge\nlarge wide"), of_two);
    close(of("Big, large\tgreat"), 1.0 - 0.5 / 27.0);
    // What is equal is not given to a synonym.
    close(score("large big", &["big large"], "big large"), 1.0 - 0.5);
}

#[test]
fn a_corpus_has_the_mean_of_the_best() {
    let mut meteor = Meteor::new(Synonyms::default());
    meteor.add("a b", &["c", "a b"]);
    meteor.add("a", &["b"]);
    close(meteor.mean(), 100.0 * (1.0 - 0.5 / 8.0) / 2.0);
}
