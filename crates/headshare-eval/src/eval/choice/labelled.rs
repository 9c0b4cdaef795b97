//! Rows whose answers are labels: what SuperGLUE and CLUE publish, and
//! OpenBookQA with the fact that a question rests on.
//!
//! The prompt of RTE is lm-evaluation-harness's. It has none for the others: theirs are
//! OpenCompass's (`SuperGLUE_AX_b_ppl_6db806`, `SuperGLUE_AX_g_ppl_66caf3`,
//! `CLUE_cmnli_ppl_fdc6de`, `CLUE_ocnli_ppl_fdc6de`, `FewCLUE_csl_gen_28b223`,
//! `FewCLUE_tnews_ppl_d10e8a`, `obqa_ppl_c7c154`). It compares the perplexities of prompt and
//! answer together; here, as everywhere, the answer's log-probability counts.

use super::question::{Frame, LONG, Question};
use crate::eval::task_file::{FieldResult, Row, wrong};
use serde_json::Value;

/// Answers to whether one sentence follows from another, by label.
const ENTAILED: [&str; 2] = ["entailment", "not_entailment"];

/// Relations of two sentences, by label.
const RELATIONS: [(&str, &str); 3] = [
    ("neutral", "无关"),
    ("entailment", "蕴含"),
    ("contradiction", "矛盾"),
];

/// What is written where annotators did not agree.
const NO_AGREEMENT: &str = "-";

/// Topics of news: the codes, which the numbers of a table follow, the names, and what
/// the prompt calls them.
const TOPICS: [(&str, &str, &str); 15] = [
    ("100", "news_story", "故事类别新闻"),
    ("101", "news_culture", "书籍文化历史类别新闻"),
    ("102", "news_entertainment", "娱乐圈新闻"),
    ("103", "news_sports", "体育类别新闻"),
    ("104", "news_finance", "投资资讯"),
    ("106", "news_house", "楼市新闻"),
    ("107", "news_car", "车辆新闻"),
    ("108", "news_edu", "初升高教育新闻"),
    ("109", "news_tech", "科技类别公司新闻"),
    ("110", "news_military", "军事类别常识"),
    ("112", "news_travel", "旅游新闻"),
    ("113", "news_world", "环球不含中国类别新闻"),
    ("114", "news_stock", "股票市场类别新闻"),
    ("115", "news_agriculture", "农业新闻"),
    ("116", "news_game", "游戏新闻"),
];

/// Whether a text is written in Han characters.
pub(super) fn is_chinese(text: &str) -> bool {
    text.chars().any(|c| ('\u{4e00}'..='\u{9fff}').contains(&c))
}

/// RTE: a premise and a hypothesis.
pub(super) fn rte(row: &Row) -> FieldResult<Question> {
    Ok(Question {
        lead: format!("{}\n", row.text("premise")?),
        text: format!("{} True or False?", row.text("hypothesis")?),
        frame: LONG,
        choices: texts(&["True", "False"]),
        gold: label(row, &ENTAILED)?,
    })
}

/// AX-b and AX-g: does the second sentence follow from the first?
pub(super) fn diagnostic(row: &Row, first: &str, second: &str) -> FieldResult<Question> {
    let (first, second) = (row.text(first)?, row.text(second)?);
    let asked = "Is the sentence below entailed by the sentence above?";
    let text = format!("{first}\n{second}\n{asked}");
    Ok(finished(&text, &["Yes", "No"], label(row, &ENTAILED)?))
}

/// CMNLI and OCNLI: how are two sentences related? `None` where annotators did not agree.
pub(super) fn relation(row: &Row) -> FieldResult<Option<Question>> {
    if row.get("label")?.as_str() == Some(NO_AGREEMENT) {
        return Ok(None);
    }
    let (first, second) = (row.text("sentence1")?, row.text("sentence2")?);
    let text = format!("语句一：“{first}”\n语句二：“{second}”\n请问这两句话是什么关系？");
    let gold = label(row, &RELATIONS.map(|(name, _)| name))?;
    Ok(Some(finished(
        &text,
        &RELATIONS.map(|(_, answer)| answer),
        gold,
    )))
}

/// CSL: are these the keywords of an abstract?
pub(super) fn keywords(row: &Row) -> FieldResult<Question> {
    let keywords = match row.get("keyword")? {
        Value::String(keywords) => keywords.clone(),
        _ => row.texts("keyword")?.join("，"),
    };
    Ok(Question {
        lead: "摘要是对论文内容不加注释和评论的简短陈述，要求扼要地说明研究工作的目的、\
               研究方法和最终结论等。\n关键词是一篇学术论文的核心词汇，一般由一系列名词组成。\
               关键词在全文中应有较高出现频率，且能起到帮助文献检索的作用。\n"
            .to_owned(),
        text: format!(
            "摘要：{}\n关键词：{keywords}\n请问上述关键词是否匹配摘要且符合要求？",
            row.text("abst")?
        ),
        frame: Frame {
            question: "",
            answer: "请从”A“，”B“中进行选择。\n答：",
        },
        choices: texts(&["否", "是"]),
        gold: row.gold("label", 2)?,
    })
}

/// TNEWS: what are these news about?
pub(super) fn topic(row: &Row) -> FieldResult<Question> {
    let (name, value) = match row.has("label_desc") {
        true => ("label_desc", row.get("label_desc")?),
        false => ("label", row.get("label")?),
    };
    let key = match value {
        Value::String(key) => key.trim().to_owned(),
        Value::Number(number) => number.to_string(),
        other => return Err(wrong(name, "a topic of news", other)),
    };
    let named = |(code, topic, _): &(&str, &str, &str)| [*code, *topic].contains(&key.as_str());
    let by_number = || key.parse().ok().filter(|at| *at < TOPICS.len());
    let Some(gold) = TOPICS.iter().position(named).or_else(by_number) else {
        return Err(format!(
            "field {name:?} is {value}, but the topics are {}",
            TOPICS.map(|(_, topic, _)| topic).join(", ")
        ));
    };
    let text = format!("{}\n上述内容属于什么新闻？", row.text("sentence")?);
    Ok(finished(&text, &TOPICS.map(|(_, _, answer)| answer), gold))
}

/// A question of OpenBookQA with the fact that it rests on.
pub(super) fn with_fact(row: &Row, mut question: Question) -> FieldResult<Question> {
    question.lead = format!("Given the fact: {}\n", row.text("fact1")?);
    question.text = format!("Question: {}", question.text.trim());
    Ok(question)
}

/// Which of `names` the label is.
fn label(row: &Row, names: &[&str]) -> FieldResult<usize> {
    let label = row.text("label")?;
    match names.iter().position(|name| *name == label.trim()) {
        Some(at) => Ok(at),
        None => Err(format!(
            "field \"label\" is {label:?}, but the labels are {}",
            names.join(", ")
        )),
    }
}

/// A question that needs no other words, and the answers on the line after it.
fn finished(text: &str, choices: &[&str], gold: usize) -> Question {
    Question {
        lead: String::new(),
        text: format!("{text}\n"),
        frame: LONG,
        choices: texts(choices),
        gold,
    }
}

fn texts(of: &[&str]) -> Vec<String> {
    of.iter().map(|text| (*text).to_owned()).collect()
}
