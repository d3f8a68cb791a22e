//! Which labels a PromQL expression gives, and what is wrong with its names and labels.
//!
//! An expression is read as Prometheus reads it, and each part is given the set of labels that its series have: a selector
//! those of its metric, an aggregation those after `by`, and so on. A label that is asked for where there is none, a metric that
//! does not exist, and two sides of an operator that can never match are faults. Values are not looked at.

use std::collections::{BTreeMap, BTreeSet};

pub type Labels = BTreeSet<String>;

/// Names of series, with the labels of each.
pub type Known = BTreeMap<String, Labels>;

/// What an expression gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    /// A number.
    Scalar,
    /// Series with these labels at most.
    Series(Labels),
}

impl Given {
    /// The labels; none for a number.
    pub fn labels(&self) -> Labels {
        match self {
            Self::Scalar => Labels::new(),
            Self::Series(labels) => labels.clone(),
        }
    }
}

/// What was read.
#[derive(Debug)]
pub struct Read {
    /// What the expression gives.
    pub given: Given,
    /// Names of metrics in it.
    pub names: BTreeSet<String>,
    /// Labels and the values that they are compared with, alternatives of a regular expression one by one.
    pub values: Vec<(String, String)>,
}

/// Reads an expression; variables of Grafana may stand in strings and durations.
pub fn read(text: &str, known: &Known) -> Result<Read, String> {
    let mut reader = Reader { tokens: tokens(text)?, at: 0, known, names: BTreeSet::new(), values: Vec::new() };
    let given = reader.expression(0)?;
    match reader.peek() {
        None => Ok(Read { given, names: reader.names, values: reader.values }),
        Some(token) => Err(format!("found {token:?} after the end of the expression")),
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Number,
    Text(String),
    Sign(&'static str),
}

const SIGNS: [&str; 24] = [
    "=~", "!~", "!=", "==", ">=", "<=", "(", ")", "{", "}", "[", "]", ",", "=", ">", "<", "+", "-", "*", "/", "%", "^",
    "@", ":",
];

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if first == '"' || first == '\'' {
            let end = rest[1..].find(first).ok_or_else(|| format!("no end of the string {rest}"))? + 1;
            tokens.push(Token::Text(rest[1..end].to_owned()));
            rest = &rest[end + 1..];
        } else if first.is_ascii_digit() || first == '$' {
            // a number, a duration, or a variable in place of one
            let end = rest[1..].find(|c: char| !is_word(c) && c != '.').map_or(rest.len(), |end| end + 1);
            tokens.push(Token::Number);
            rest = &rest[end..];
        } else if is_word(first) {
            let end = rest.find(|c: char| !is_word(c) && c != ':').unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].to_owned()));
            rest = &rest[end..];
        } else {
            let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign));
            let sign = sign.ok_or_else(|| format!("found '{first}', which is no part of an expression"))?;
            tokens.push(Token::Sign(sign));
            rest = &rest[sign.len()..];
        }
        rest = rest.trim_start();
    }
    Ok(tokens)
}

const AGGREGATIONS: [&str; 11] =
    ["sum", "min", "max", "avg", "count", "group", "stddev", "stdvar", "topk", "bottomk", "quantile"];

/// Functions whose series have the labels of their argument.
const FUNCTIONS: &str = "abs avg_over_time ceil changes clamp_max clamp_min count_over_time delta deriv floor idelta increase irate \
    last_over_time max_over_time min_over_time predict_linear quantile_over_time rate resets round sgn sort \
    sort_desc sum_over_time timestamp";

/// How tightly an operator binds; none for what is no operator.
fn binding(token: &Token) -> Option<u8> {
    match token {
        Token::Word(word) => match word.as_str() {
            "or" => Some(1),
            "and" | "unless" => Some(2),
            _ => None,
        },
        Token::Sign("==" | "!=" | ">" | "<" | ">=" | "<=") => Some(3),
        Token::Sign("+" | "-") => Some(4),
        Token::Sign("*" | "/" | "%") => Some(5),
        Token::Sign("^") => Some(6),
        _ => None,
    }
}

/// `on` or `ignoring` of an operator, and labels taken over from the other side.
struct Matching {
    on: Option<Labels>,
    ignoring: Labels,
    group: Option<(bool, Labels)>,
}

struct Reader<'a> {
    tokens: Vec<Token>,
    at: usize,
    known: &'a Known,
    names: BTreeSet<String>,
    values: Vec<(String, String)>,
}

impl Reader<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Result<Token, String> {
        let token = self.tokens.get(self.at).cloned().ok_or("the expression breaks off")?;
        self.at += 1;
        Ok(token)
    }

    fn sign(&mut self, sign: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Sign(one)) if *one == sign);
        self.at += usize::from(found);
        found
    }

    fn word(&mut self, word: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Word(one)) if one == word);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &str) -> Result<(), String> {
        if self.sign(sign) { Ok(()) } else { Err(format!("expected '{sign}', found {:?}", self.peek())) }
    }

    fn expression(&mut self, least: u8) -> Result<Given, String> {
        let mut left = self.single()?;
        while let Some((operator, level)) = self.peek().and_then(|token| Some((token.clone(), binding(token)?))) {
            if level <= least {
                break;
            }
            self.at += 1;
            self.word("bool");
            let matching = self.matching()?;
            let right = self.expression(level)?;
            left = combine(&operator, &matching, left, right)?;
        }
        Ok(left)
    }

    fn matching(&mut self) -> Result<Matching, String> {
        let mut matching = Matching { on: None, ignoring: Labels::new(), group: None };
        if self.word("on") {
            matching.on = Some(self.list()?);
        } else if self.word("ignoring") {
            matching.ignoring = self.list()?;
        }
        for (word, left) in [("group_left", true), ("group_right", false)] {
            if self.word(word) {
                let extra = if self.peek() == Some(&Token::Sign("(")) { self.list()? } else { Labels::new() };
                matching.group = Some((left, extra));
            }
        }
        Ok(matching)
    }

    /// Labels in brackets.
    fn list(&mut self) -> Result<Labels, String> {
        self.expect("(")?;
        let mut labels = Labels::new();
        while !self.sign(")") {
            match self.next()? {
                Token::Word(label) => labels.insert(label),
                other => return Err(format!("expected a label, found {other:?}")),
            };
            self.sign(",");
        }
        Ok(labels)
    }

    fn single(&mut self) -> Result<Given, String> {
        let given = match self.next()? {
            Token::Number => Given::Scalar,
            Token::Sign("-" | "+") => self.single()?,
            Token::Sign("(") => {
                let given = self.expression(0)?;
                self.expect(")")?;
                given
            }
            Token::Word(word) if AGGREGATIONS.contains(&word.as_str()) => self.aggregation(&word)?,
            Token::Word(word) if self.peek() == Some(&Token::Sign("(")) => self.function(&word)?,
            Token::Word(word) => self.selector(&word)?,
            other => return Err(format!("expected a metric, a number or a function, found {other:?}")),
        };
        if self.sign("[") {
            while !self.sign("]") {
                self.next()?;
            }
        }
        if self.word("offset") {
            self.next()?;
        }
        Ok(given)
    }

    fn selector(&mut self, name: &str) -> Result<Given, String> {
        let labels = self.known.get(name).cloned().ok_or_else(|| format!("there is no metric {name}"))?;
        self.names.insert(name.to_owned());
        if self.sign("{") {
            while !self.sign("}") {
                let Token::Word(label) = self.next()? else { return Err(format!("{name}: expected a label")) };
                if !labels.contains(&label) {
                    return Err(format!("{name} has no label {label}, it has {labels:?}"));
                }
                let (comparison, Token::Text(value)) = (self.next()?, self.next()?) else {
                    return Err(format!("{name}: expected a string for {label}"));
                };
                let alternatives = match comparison {
                    Token::Sign("=" | "!=") => vec![value.as_str()],
                    Token::Sign("=~" | "!~") => value.split('|').collect(),
                    other => return Err(format!("{name}: {other:?} compares no labels")),
                };
                self.values.extend(alternatives.iter().map(|one| (label.clone(), (*one).to_owned())));
                self.sign(",");
            }
        }
        Ok(Given::Series(labels))
    }

    /// What stands in the brackets of a function: what each argument gives, and those that are strings.
    fn arguments(&mut self) -> Result<(Vec<Given>, Vec<String>), String> {
        self.expect("(")?;
        let (mut given, mut texts) = (Vec::new(), Vec::new());
        while !self.sign(")") {
            if let Some(Token::Text(text)) = self.peek() {
                texts.push(text.clone());
                self.at += 1;
            } else {
                given.push(self.expression(0)?);
            }
            self.sign(",");
        }
        Ok((given, texts))
    }

    fn aggregation(&mut self, word: &str) -> Result<Given, String> {
        let mut clause = self.clause()?;
        let (given, _) = self.arguments()?;
        if clause.is_none() {
            clause = self.clause()?;
        }
        let labels = given.last().ok_or_else(|| format!("{word} of nothing"))?.labels();
        let chosen = match clause {
            Some((by, listed)) => {
                if let Some(label) = listed.difference(&labels).next() {
                    return Err(format!("{word} by or without {label}, of series that have {labels:?}"));
                }
                if by { listed } else { &labels - &listed }
            }
            None => Labels::new(),
        };
        // these two choose among series, whose labels stay
        Ok(Given::Series(if matches!(word, "topk" | "bottomk") { labels } else { chosen }))
    }

    fn clause(&mut self) -> Result<Option<(bool, Labels)>, String> {
        if self.word("by") {
            return Ok(Some((true, self.list()?)));
        }
        if self.word("without") { Ok(Some((false, self.list()?))) } else { Ok(None) }
    }

    fn function(&mut self, name: &str) -> Result<Given, String> {
        let before = self.values.len();
        let (given, texts) = self.arguments()?;
        let mut labels = given.iter().map(Given::labels).find(|labels| !labels.is_empty()).unwrap_or_default();
        match name {
            "time" | "scalar" => return Ok(Given::Scalar),
            "vector" => {}
            "absent" | "absent_over_time" => {
                labels = self.values[before..].iter().map(|(label, _)| label.clone()).collect();
            }
            "histogram_quantile" => {
                if !labels.remove("le") {
                    return Err(format!("histogram_quantile of series without le: {labels:?}"));
                }
            }
            "label_replace" => {
                let [to, _, from, _] = &texts[..] else { return Err("label_replace takes four strings".to_owned()) };
                if !labels.contains(from) {
                    return Err(format!("label_replace from {from}, of series that have {labels:?}"));
                }
                labels.insert(to.clone());
            }
            _ if FUNCTIONS.split_whitespace().any(|one| one == name) => {}
            _ => return Err(format!("the function {name} is not known to this test")),
        }
        Ok(Given::Series(labels))
    }
}

fn combine(operator: &Token, matching: &Matching, left: Given, right: Given) -> Result<Given, String> {
    let (Given::Series(mut one), Given::Series(mut other)) = (left.clone(), right.clone()) else {
        return Ok(if left == Given::Scalar { right } else { left });
    };
    if *operator == Token::Word("or".to_owned()) {
        return Ok(Given::Series(&one | &other));
    }
    if let Some(on) = &matching.on {
        if let Some(label) = on.iter().find(|label| !one.contains(*label) || !other.contains(*label)) {
            return Err(format!("on({label}), which one side of {operator:?} does not have: {one:?}, {other:?}"));
        }
    } else if &one - &matching.ignoring != &other - &matching.ignoring {
        return Err(format!("{operator:?} can match nothing: {one:?} on one side, {other:?} on the other"));
    }
    if matches!(operator, Token::Word(_)) {
        return Ok(Given::Series(one));
    }
    if let Some((keep_left, extra)) = &matching.group {
        if !keep_left {
            std::mem::swap(&mut one, &mut other);
        }
        if let Some(label) = extra.difference(&other).next() {
            return Err(format!("{label} is taken over from series that have {other:?}"));
        }
        return Ok(Given::Series(&one | extra));
    }
    Ok(Given::Series(matching.on.clone().unwrap_or_else(|| &one - &matching.ignoring)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(labels: &[&str]) -> Labels {
        labels.iter().map(|label| (*label).to_owned()).collect()
    }

    fn known() -> Known {
        [("a_total", set(&["pod", "mode"])), ("b_total", set(&["pod"])), ("t_bucket", set(&["pod", "le"]))]
            .map(|(name, labels)| (name.to_owned(), labels))
            .into()
    }

    #[test]
    fn labels_are_followed_through_an_expression() {
        for (text, labels) in [
            ("a_total", &["pod", "mode"][..]),
            ("sum(rate(a_total{mode=\"x\"}[5m]))", &[]),
            ("sum by (pod) (rate(a_total[$__rate_interval]))", &["pod"]),
            ("sum(a_total) by (mode)", &["mode"]),
            ("max without (mode) (a_total)", &["pod"]),
            ("topk(3, b_total)", &["pod"]),
            ("histogram_quantile(0.99, sum by (le, pod) (rate(t_bucket[5m])))", &["pod"]),
            ("a_total / ignoring (mode) group_left b_total > 0.1", &["pod", "mode"]),
            ("a_total / on (pod) group_left () b_total", &["pod", "mode"]),
            ("a_total and on (pod) b_total > 2 and 1 + 2 > 1", &["pod", "mode"]),
            ("sum by (pod) (a_total) / b_total * 100 or vector(0)", &["pod"]),
            ("absent(a_total{mode=\"x\"})", &["mode"]),
            ("label_replace(b_total, \"to\", \"$1\", \"pod\", \"/(.*)\")", &["pod", "to"]),
            ("increase(max without (mode) (a_total)[15m:1m]) unless b_total offset 10m", &["pod"]),
            ("-time() + 1", &[]),
        ] {
            let read = read(text, &known()).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(read.given.labels(), set(labels), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_is_told() {
        for (text, fault) in [
            ("c_total", "there is no metric c_total"),
            ("rate(b_total{mode=\"x\"}[5m])", "b_total has no label mode"),
            ("sum by (mode) (b_total)", "by or without mode"),
            ("sum by (mode) (sum by (pod) (a_total))", "by or without mode"),
            ("histogram_quantile(0.9, sum by (pod) (t_bucket))", "without le"),
            ("a_total / b_total", "can match nothing"),
            ("b_total and on (mode) a_total", "on(mode)"),
            ("b_total * on (pod) group_left (le) a_total", "le is taken over"),
            ("frob(a_total)", "frob is not known"),
            ("a_total b_total", "after the end"),
            ("sum(a_total", "breaks off"),
            ("a_total{mode=\"x}", "no end of the string"),
            ("a_total ; 1", "';'"),
            ("", "breaks off"),
        ] {
            let error = read(text, &known()).unwrap_err();
            assert!(error.contains(fault), "{text}: {error}");
        }
    }

    #[test]
    fn names_and_values_are_told() {
        let read = read("a_total{mode=~\"x|y\", pod!=\"\"} > 1 or b_total", &known()).unwrap();
        assert_eq!(read.names.into_iter().collect::<Vec<_>>(), ["a_total", "b_total"]);
        let values: Vec<_> = read.values.iter().map(|(label, value)| format!("{label}:{value}")).collect();
        assert_eq!(values, ["mode:x", "mode:y", "pod:"]);
    }
}
