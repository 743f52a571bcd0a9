//! What reaches a terminal: no control characters of others, colours and progress only where a person looks.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// `text` with every control character, and every invisible one that changes the direction of text, written as `\u{…}`: names come from anybody who may create an object.
pub fn printable(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for character in text.chars() {
        if is_unsafe(character) {
            let _ = write!(clean, "\\u{{{:x}}}", u32::from(character));
        } else {
            clean.push(character);
        }
    }
    clean
}

/// Whether a terminal does something else with it than to show it.
pub fn is_unsafe(character: char) -> bool {
    let turns = matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}');
    character.is_control() || turns
}

/// How many columns standard output has; without end where it is no terminal.
pub fn columns() -> usize {
    let stdout = io::stdout();
    let size = terminal_size::terminal_size_of(&stdout).filter(|_| stdout.is_terminal());
    size.map_or(usize::MAX, |(terminal_size::Width(columns), _)| usize::from(columns)).max(20)
}

/// A progress bar with an estimate of the time that is left, on standard error; silent where that is no terminal. `total` is in `unit`s, unknown where `None`.
pub fn progress(total: Option<u64>, unit: &str) -> ProgressBar {
    let bar = match total {
        Some(total) => ProgressBar::new(total),
        None => ProgressBar::new_spinner(),
    };
    bar.set_draw_target(if io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    });
    let template = match total {
        Some(_) => {
            format!(
                "{{bar:30}} {{percent:>3}} %  {{human_pos}} of {{human_len}} {unit}, {{eta}} left {{wide_msg}}"
            )
        }
        None => format!("{{spinner}} {{human_pos}} {unit}, {{elapsed}}"),
    };
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn escape_codes_do_not_pass() {
        assert_eq!(printable("a\u{1b}[31mb\u{9b}c\u{202e}d\n"), "a\\u{1b}[31mb\\u{9b}c\\u{202e}d\\u{a}");
        assert_eq!(printable("größe 模型"), "größe 模型");
    }
}
