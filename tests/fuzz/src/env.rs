//! Variables that refer to each other, expanded, and compared with a reading of the rules (KEP-559, `third_party/forked/golang/expansion`)
//! letter by letter. Each line is a variable, `NAME=text`; those before it are what it can refer to.

use std::collections::BTreeMap;

use spillway_vk::pod::env;

/// All that is expanded of one input, roughly: the same megabytes again and again show nothing new.
const ENOUGH: usize = 3 * env::MAX_BYTES;

/// Expands each line both ways.
pub fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut known: BTreeMap<&str, String> = BTreeMap::new();
    let mut total = 0;
    for line in text.split('\n') {
        if total > ENOUGH {
            return;
        }
        let (name, value) = line.split_once('=').unwrap_or(("", line));
        let found = env::expand(value, |name| known.get(name).map(String::as_str));
        let expected = naive(value, &known);
        match (found, expected) {
            (Ok(found), Some(expected)) => {
                assert_eq!(found, expected, "{value:?} with {known:?}");
                total += found.len();
                known.insert(name, found);
            }
            // Each may be twice the one before: a few lines are more than all memory.
            (Err(error), None) => {
                assert!(error.to_string().len() < 300, "{error}");
                total += env::MAX_BYTES;
            }
            (found, _) => panic!("{:?} of {value:?}", found.map(|text| text.len())),
        }
    }
}

/// `None`: longer than Linux gives any process.
fn naive(text: &str, known: &BTreeMap<&str, String>) -> Option<String> {
    let letters: Vec<char> = text.chars().collect();
    let mut out = String::new();
    let mut at = 0;
    while at < letters.len() {
        match (letters[at], letters.get(at + 1)) {
            ('$', Some('$')) => {
                out.push('$');
                at += 2;
            }
            ('$', Some('(')) => {
                let name: String = letters[at + 2..].iter().take_while(|letter| **letter != ')').collect();
                let end = at + 2 + name.chars().count();
                if end == letters.len() {
                    // It is never closed, and so it is none.
                    out.push_str("$(");
                    at += 2;
                } else {
                    match known.get(name.as_str()) {
                        Some(value) => out.push_str(value),
                        None => out.extend(["$(", &name, ")"]),
                    }
                    at = end + 1;
                }
            }
            (letter, _) => {
                out.push(letter);
                at += 1;
            }
        }
        if out.len() > env::MAX_BYTES {
            return None;
        }
    }
    Some(out)
}
