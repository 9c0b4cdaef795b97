//! Each form, from a row to what is scored.

use serde_json::{Value, json};

use super::*;

fn items(row: &Value, kind: Option<Kind>) -> FieldResult<(Form, Kind, Vec<Item>)> {
    let row = Row::parse(&row.to_string())?;
    let form = Form::of(&row).expect("a known form");
    let kind = form.kind(&row, kind)?;
    Ok((form, kind, form.items(&row, kind)?))
}

#[track_caller]
fn check(row: Value, form: Form, kind: Kind, pairs: &[(&str, &str)], gold: usize) {
    let (f, k, items) = items(&row, None).unwrap();
    assert_eq!((f, k), (form, kind));
    let found: Vec<_> = (items[0].pairs.iter())
        .map(|pair| (pair.context.as_str(), pair.continuation.as_str()))
        .collect();
    assert_eq!(found, pairs);
    assert_eq!(items[0].gold, gold);
}

#[test]
fn piqa() {
    let row = json!({"goal": "Open it.", "sol1": "Pull.", "sol2": "Push.", "label": 1});
    let context = "Question: Open it.\nAnswer:";
    let pairs = [(context, " Pull."), (context, " Push.")];
    check(row, Form::Piqa, Kind::Question, &pairs, 1);
    // A space stands before each choice, whatever it begins with.
    let row = json!({"goal": "Open it.", "sol1": " Pull.", "sol2": "Push.", "label": 1});
    let two = [(context, "  Pull."), (context, " Push.")];
    check(row, Form::Piqa, Kind::Question, &two, 1);
    // The same question as a finished query.
    let row = json!({"query": "Question: Open it.\n", "choices": ["Pull.", "Push."], "gold": 1});
    check(row, Form::Query, Kind::Question, &pairs, 1);
}

#[test]
fn open_book_qa() {
    let row = json!({"id": "1", "question_stem": "Predators eat",
        "choices": {"text": ["lions", "bunnies"], "label": ["A", "B"]}, "answerKey": "B"});
    let pairs = [("Predators eat", " lions"), ("Predators eat", " bunnies")];
    check(row, Form::OpenBookQa, Kind::Choices, &pairs, 1);
    let row = json!({"id": "1", "question_stem": "Predators eat ",
        "choices": {"text": ["lions", "bunnies"], "label": ["A", "B"]}, "answerKey": "B"});
    let spaced = pairs.map(|(_, choice)| ("Predators eat ", choice));
    check(row, Form::OpenBookQa, Kind::Choices, &spaced, 1);
    let row = json!({"query": "Predators eat", "choices": ["lions", "bunnies"], "gold": 1});
    check(row, Form::Query, Kind::Choices, &pairs, 1);
}

#[test]
fn bool_q() {
    let row = json!({"question": "is it blue", "passage": "The sky is blue.", "answer": true});
    let context = "The sky is blue.\nQuestion: is it blue?\nAnswer:";
    let pairs = [(context, " no"), (context, " yes")];
    check(row, Form::BoolQ, Kind::Question, &pairs, 1);
    let row =
        json!({"question": "is it blue?", "passage": "The sky is blue.", "label": 0, "idx": 7});
    check(row, Form::BoolQ, Kind::Question, &pairs, 0);
}

#[test]
fn arc_as_published_and_as_a_table() {
    let context = "Question: Why?\nAnswer:";
    let pairs = [(context, " so"), (context, " thus")];
    let row = json!({"id": "M_1", "question": {"stem": "Why?", "choices": [
        {"text": "so", "label": "1"}, {"text": "thus", "label": "2"}]}, "answerKey": "2"});
    check(row.clone(), Form::Stem, Kind::Question, &pairs, 1);
    let table = json!({"id": "M_1", "question": "Why?", "answerKey": "2",
        "choices": {"text": ["so", "thus"], "label": ["1", "2"]}});
    check(table, Form::Arc, Kind::Question, &pairs, 1);
    // OpenBookQA as it is published has ARC's fields: `--kind` tells them apart.
    let (_, _, items) = items(&row, Some(Kind::Choices)).unwrap();
    assert_eq!(items[0].pairs[0].context, "Why?");
}

#[test]
fn hella_swag() {
    let row = json!({"ind": 4, "activity_label": "Baking", "ctx_a": "He bakes [header] a cake.",
        "ctx_b": "then He", "ctx": "ignored", "label": "1",
        "endings": ["eats it [title] Good", "[substeps] throws  it [away."]});
    let context = "Baking: He bakes a cake. Then he";
    let pairs = [(context, " eats it. Good"), (context, "  throws it [away.")];
    check(row, Form::HellaSwag, Kind::Choices, &pairs, 1);
}

#[test]
fn siqa_counts_from_1() {
    let row = json!({"context": "He left.", "question": "Why?", "answerA": "a", "answerB": "b",
        "answerC": "c", "label": "3"});
    let context = "Q: He left. Why?\nA:";
    let pairs = [(context, " a"), (context, " b"), (context, " c")];
    check(row, Form::Siqa, Kind::Question, &pairs, 2);
}

#[test]
fn winogrande_is_scored_partially() {
    let row = json!({"sentence": "It fits _ as is.", "option1": "the box", "option2": "the bag",
        "answer": "2"});
    let pairs = [
        ("It fits the box", " as is."),
        ("It fits the bag", " as is."),
    ];
    check(row, Form::WinoGrande, Kind::Partial, &pairs, 1);
    let row = json!({"context_options": ["It fits the box", "It fits the bag"],
        "continuation": "as is.", "gold": 1});
    check(row, Form::Contexts, Kind::Partial, &pairs, 1);
}

#[test]
fn lambada_is_the_last_word() {
    let pairs = [("He said", " no")];
    let row = json!({"context": "He said", "continuation": "no"});
    check(row, Form::Continuation, Kind::LastWord, &pairs, 0);
    check(
        json!({"text": "He said no"}),
        Form::Text,
        Kind::LastWord,
        &pairs,
        0,
    );
}

#[test]
fn race_row_by_row_and_article_by_article() {
    let row = json!({"article": "Tom ran.", "question": "Tom _ .", "options": ["sat", "ran"],
        "answer": "B"});
    let context = "Article: Tom ran.\n\nTom _ .";
    let pairs = [(context, " sat"), (context, " ran")];
    check(row, Form::Race, Kind::Choices, &pairs, 1);
    let row = json!({"passage": "Tom ran.", "question": "Tom _ .", "options": ["sat", "ran"],
        "gold": 1});
    check(row, Form::Race, Kind::Choices, &pairs, 1);
    let row = json!({"article": "Tom ran.", "questions": ["Tom _ .", "Who?"], "id": "1",
        "options": [["sat", "ran"], ["Tom", "Tim"]], "answers": ["B", "A"]});
    check(row.clone(), Form::RaceArticle, Kind::Choices, &pairs, 1);
    // A space stands before each choice, whatever it begins with.
    let two = [(context, "  sat"), (context, " ran")];
    let spaced = json!({"article": "Tom ran.", "question": "Tom _ .", "options": [" sat", "ran"],
        "answer": "B"});
    check(spaced, Form::Race, Kind::Choices, &two, 1);
    let spaced = json!({"article": "Tom ran.", "questions": ["Tom _ ."], "id": "1",
        "options": [[" sat", "ran"]], "answers": ["B"]});
    check(spaced, Form::RaceArticle, Kind::Choices, &two, 1);
    let (_, _, items) = items(&row, Some(Kind::Question)).unwrap();
    assert_eq!(items.len(), 2);
    assert_eq!(
        items[1].pairs[0].context,
        "Article: Tom ran.\n\nQuestion: Who?\nAnswer:"
    );
}

#[test]
fn rte_and_the_diagnostics_of_super_glue() {
    let row = json!({"premise": "It rained.", "hypothesis": "It was wet.",
        "label": "not_entailment", "idx": 3});
    let context = "It rained.\nQuestion: It was wet. True or False?\nAnswer:";
    let pairs = [(context, " True"), (context, " False")];
    check(row, Form::Rte, Kind::Question, &pairs, 1);
    let context =
        "It rained.\nIt was wet.\nIs the sentence below entailed by the sentence above?\n";
    let pairs = [(context, "Yes"), (context, "No")];
    let row = json!({"premise": "It rained.", "hypothesis": "It was wet.", "label": "entailment",
        "idx": 0, "pair_id": 551});
    check(row, Form::AxG, Kind::Choices, &pairs, 0);
    let row = json!({"sentence1": "It rained.", "sentence2": "It was wet.",
        "label": "not_entailment", "idx": 0,
        "logic": "Negation"});
    check(row, Form::AxB, Kind::Choices, &pairs, 1);
}

#[test]
fn two_chinese_sentences_are_related() {
    let row =
        |label: Value| json!({"sentence1": "下雨了。", "sentence2": "地湿了。", "label": label});
    let context = "语句一：“下雨了。”\n语句二：“地湿了。”\n请问这两句话是什么关系？\n";
    let pairs = [(context, "无关"), (context, "蕴含"), (context, "矛盾")];
    check(
        row(json!("contradiction")),
        Form::Relation,
        Kind::Choices,
        &pairs,
        2,
    );
    // Annotators did not agree: no question.
    assert!(items(&row(json!("-")), None).unwrap().2.is_empty());
    let problem = items(&row(json!("entails")), None).unwrap_err();
    assert_eq!(
        problem,
        "field \"label\" is \"entails\", but the labels are neutral, entailment, contradiction"
    );
}

#[test]
fn rows_that_only_look_alike_are_no_such_task() {
    for row in [
        json!({"word": "bank", "sentence1": "a", "sentence2": "b", "label": true}),
        json!({"sentence1": "a", "sentence2": "b", "label": 1, "idx": 0}),
        json!({"premise": "a", "hypothesis": "b", "label": 2}),
        json!({"sentence": "a fine film", "label": 1}),
    ] {
        let row = Row::parse(&row.to_string()).unwrap();
        assert_eq!(Form::of(&row), None, "{}", row.names());
    }
    // A fact beside a question of ARC's kind is only one more field.
    let row = json!({"question": "Why?", "fact1": "f", "answerKey": "1",
        "choices": {"text": ["so", "thus"], "label": ["1", "2"]}});
    let row = Row::parse(&row.to_string()).unwrap();
    assert_eq!(Form::of(&row), Some(Form::Arc));
}

#[test]
fn keywords_of_an_abstract() {
    let row = json!({"id": 1, "abst": "文", "keyword": ["甲", "乙"], "label": "1"});
    let (form, kind, items) = items(&row, None).unwrap();
    assert_eq!((form, kind, items[0].gold), (Form::Csl, Kind::Letters, 1));
    let context = &items[0].pairs[0].context;
    assert!(
        context.ends_with(
            "摘要：文\n关键词：甲，乙\n请问上述关键词是否匹配摘要且符合要求？\n\
             A. 否\nB. 是\n请从”A“，”B“中进行选择。\n答："
        ),
        "{context}"
    );
}

#[test]
fn topics_of_news() {
    for label in [
        json!({"label": "102", "label_desc": "news_entertainment"}),
        json!({"label": "102"}),
        json!({"label": 2}),
    ] {
        let mut row = json!({"sentence": "今天", "keywords": ""});
        row.as_object_mut()
            .unwrap()
            .extend(label.as_object().unwrap().clone());
        let (form, kind, items) = items(&row, None).unwrap();
        assert_eq!((form, kind), (Form::Tnews, Kind::Choices));
        assert_eq!((items[0].pairs.len(), items[0].gold), (15, 2));
        assert_eq!(items[0].pairs[2].context, "今天\n上述内容属于什么新闻？\n");
        assert_eq!(items[0].pairs[2].continuation, "娱乐圈新闻");
    }
    let problem = items(&json!({"sentence": "今天", "label": "105"}), None).unwrap_err();
    assert!(problem.contains("news_story, news_culture"), "{problem}");
}

#[test]
fn open_book_qa_with_its_fact() {
    let stem = json!({"id": "1", "fact1": "lions hunt", "answerKey": "B",
        "question": {"stem": "Predators eat", "choices": [
            {"text": "grass", "label": "A"}, {"text": "bunnies", "label": "B"}]}});
    let table = json!({"id": "1", "fact1": "lions hunt", "question_stem": "Predators eat",
        "choices": {"text": ["grass", "bunnies"], "label": ["A", "B"]}, "answerKey": "B"});
    let context =
        "Given the fact: lions hunt\nQuestion: Predators eat\nA. grass\nB. bunnies\nAnswer:";
    let pairs = [(context, " A"), (context, " B")];
    for row in [stem, table] {
        check(row.clone(), Form::Fact, Kind::Letters, &pairs, 1);
        let (_, _, items) = items(&row, Some(Kind::Question)).unwrap();
        assert_eq!(
            items[0].pairs[1].context,
            "Given the fact: lions hunt\nQuestion: Predators eat\nAnswer:"
        );
    }
}

#[test]
fn a_kind_that_does_not_fit_is_refused() {
    let row = json!({"context": "He said", "continuation": "no"});
    let problem = items(&row, Some(Kind::Letters)).unwrap_err();
    assert_eq!(
        problem,
        "rows with the fields context, continuation cannot be scored as letters; \
         they can as last-word"
    );
}

#[test]
fn bad_fields_are_named() {
    for (row, part) in [
        (
            json!({"query": 1, "choices": ["a", "b"], "gold": 0}),
            "\"query\"",
        ),
        (
            json!({"query": "q", "choices": ["a", "b"], "gold": 2}),
            "\"gold\" is 2",
        ),
        (
            json!({"context_options": [], "continuation": "c", "gold": 0}),
            "\"context_options\"",
        ),
        (
            json!({"context_options": ["a", "b"], "continuation": " ", "gold": 0}),
            "\"continuation\"",
        ),
        (
            json!({"sentence": "none", "option1": "a", "option2": "b", "answer": "1"}),
            "\"sentence\"",
        ),
        (
            json!({"goal": "g", "sol1": "a", "sol2": "", "label": 0}),
            "\"sol2\" is empty",
        ),
        (
            json!({"question": {"stem": "q"}, "answerKey": "A"}),
            "\"question.choices\"",
        ),
        (
            json!({"article": "a", "questions": ["q"], "options": [], "answers": ["A"]}),
            "\"options\" holds 0 entries",
        ),
        (json!({"text": "word"}), "\"text\""),
    ] {
        let problem = items(&row, None).unwrap_err();
        assert!(problem.contains(part), "{problem}");
    }
}
