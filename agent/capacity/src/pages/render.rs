//! One HTML file of a [`Page`]: its style, its script and the charting library stand in it, and its own policy forbids the browser to ask for anything else.
//!
//! Names in it come from anybody who may create an object. They are text in HTML and strings in JSON, and the policy lets no script run but the two that stand here, by their hash.

use std::{fmt::Write as _, sync::LazyLock};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::tz::TimeZone;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::model::{Drawing, Fact, Page, Plot, Section};
use crate::{output::Table, terminal::printable};

/// The charting library, as its package `echarts` 6.1.0 has it (Apache-2.0).
const LIBRARY: &str = include_str!("echarts/echarts.min.js");
const SCRIPT: &str = concat!(include_str!("plots.js"), include_str!("page.js"));
const STYLE: &str = include_str!("page.css");
/// A browser would ask the server for one otherwise.
const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Crect y='9' width='16' height='7' rx='1' fill='%230b63b0'/%3E%3Cpath d='M0 8c4-6 6-6 8-3s5 3 8-3v5H0z' fill='%23d1620a'/%3E%3C/svg%3E";
/// How many rows of a table a page shows: `-o csv` has all of them.
const ROWS: usize = 500;
/// A table of no more is never scrolled.
const WHOLE: usize = 20;
/// How many warnings are shown at once.
const WARNINGS: usize = 5;
/// Cells of no more characters are not broken: dates, names.
const SHORT: usize = 18;
/// Longer words are cut in headings and tables: Kubernetes has names of 253 characters.
const LONGEST_WORD: usize = 63;
/// A table with more columns has no room beside its plot.
const BESIDE: usize = 4;
/// Nor one whose widest cells have more characters together.
const BESIDE_WIDTH: usize = 40;

/// How a page is served while it changes.
#[derive(Debug, Clone)]
pub struct Live {
    /// How often the browser asks for it anew.
    pub refresh_s: u32,
    /// The other pages: path and name, in order.
    pub links: Vec<(String, String)>,
}

/// What a browser may load, as the value of `Content-Security-Policy`: nothing but what stands in the page, and the page itself again where it is `live`.
pub fn policy(live: bool) -> String {
    static HASHES: LazyLock<[String; 3]> = LazyLock::new(|| {
        [LIBRARY, SCRIPT, STYLE].map(|text| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text))))
    });
    let [library, script, style] = &*HASHES;
    let connect = if live { " connect-src 'self';" } else { "" };
    format!(
        "default-src 'none'; script-src {library} {script}; style-src {style}; img-src data:;{connect} base-uri 'none'; form-action 'none'"
    )
}

/// The page as a file.
pub fn file(page: &Page) -> String {
    document(page, None)
}

/// The page as it is served.
pub fn live(page: &Page, live: &Live) -> String {
    document(page, Some(live))
}

/// What changes of a page that is served: its `main` element.
pub fn part(page: &Page) -> String {
    let mut html = String::new();
    main(&mut html, page);
    html
}

fn document(page: &Page, live: Option<&Live>) -> String {
    let mut html = String::with_capacity(LIBRARY.len() + 256 * 1024);
    let title = escaped(&format!("{} · {}", page.title, page.subtitle));
    let refresh = live.map_or_else(String::new, |live| {
        let seconds = live.refresh_s;
        // Who runs no scripts gets the whole page anew.
        format!(
            "<meta name=\"refresh-seconds\" content=\"{seconds}\">\n<noscript><meta http-equiv=\"refresh\" content=\"{seconds}\"></noscript>\n"
        )
    });
    let _ = write!(
        html,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta name=\"referrer\" content=\"no-referrer\">\n\
         {refresh}<title>{title}</title>\n<link rel=\"icon\" href=\"{ICON}\">\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <a class=\"skip\" href=\"#content\">Skip to the content</a>\n",
        policy = policy(live.is_some()),
    );
    bar(&mut html, live);
    main(&mut html, page);
    let _ = write!(
        html,
        "<footer><p>Made by kubectl spillway {version}. Plots: Apache ECharts 6.1.0, © 2017–2026 The Apache Software Foundation, Apache-2.0.</p></footer>\n\
         <script>{LIBRARY}</script>\n<script>{SCRIPT}</script>\n</body>\n</html>\n",
        version = env!("CARGO_PKG_VERSION"),
    );
    html
}

fn main(html: &mut String, page: &Page) {
    html.push_str("<main id=\"content\">\n");
    head(html, page);
    warnings(html, &page.warnings);
    facts(html, &page.facts);
    contents(html, &page.sections);
    for (index, part) in page.sections.iter().enumerate() {
        section(html, index + 1, part);
    }
    html.push_str("</main>\n");
}

fn bar(html: &mut String, live: Option<&Live>) {
    html.push_str("<header class=\"bar\"><span class=\"brand\">Spillway</span>");
    if let Some(live) = live {
        html.push_str("<nav aria-label=\"Pages\"><ul>");
        for (path, name) in &live.links {
            let _ = write!(html, "<li><a href=\"{}\">{}</a></li>", escaped(path), escaped(name));
        }
        html.push_str("</ul></nav><span id=\"state\" class=\"state\" role=\"status\"></span>");
    }
    html.push_str("<button id=\"theme\" type=\"button\" hidden></button></header>\n");
}

fn head(html: &mut String, page: &Page) {
    let at = page.generated_at.to_zoned(TimeZone::UTC);
    let _ = write!(
        html,
        "<div class=\"head\"><h1>{}</h1>\n<p class=\"sub\">{}</p>\n<p class=\"when\">As of <time datetime=\"{}\">{} UTC</time></p></div>\n\
         <noscript><p class=\"hint\">Plots are drawn by a script; the tables have the same numbers.</p></noscript>\n",
        escaped(&readable(&page.title)),
        escaped(&page.subtitle),
        at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        at.strftime("%-d %B %Y, %H:%M"),
    );
}

fn warnings(html: &mut String, warnings: &[String]) {
    if warnings.is_empty() {
        return;
    }
    let (shown, more) = warnings.split_at(warnings.len().min(WARNINGS));
    html.push_str("<aside class=\"warnings\" aria-labelledby=\"warnings\"><h2 id=\"warnings\">Before you rely on it</h2>\n<ul>");
    for warning in shown {
        let _ = write!(html, "<li>{}</li>", escaped(&sentence(warning)));
    }
    html.push_str("</ul>");
    if !more.is_empty() {
        let _ = write!(html, "<details><summary>{} more</summary><ul>", more.len());
        for warning in more {
            let _ = write!(html, "<li>{}</li>", escaped(&sentence(warning)));
        }
        html.push_str("</ul></details>");
    }
    html.push_str("</aside>\n");
}

/// `text` beginning with a capital: on a terminal it stood behind "warning:".
fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

fn facts(html: &mut String, facts: &[Fact]) {
    if facts.is_empty() {
        return;
    }
    html.push_str("<dl class=\"facts\">\n");
    for fact in facts {
        let (class, mark) = if fact.alarming {
            (" class=\"alarming\"", "<span class=\"mark\" role=\"img\" aria-label=\"attention\">▲</span> ")
        } else {
            ("", "")
        };
        let _ = write!(
            html,
            "<div{class}><dt>{mark}{}</dt><dd>{}",
            escaped(&readable(&fact.label)),
            escaped(&fact.value)
        );
        if !fact.detail.is_empty() {
            let _ = write!(html, "<span class=\"detail\">{}</span>", escaped(&fact.detail));
        }
        html.push_str("</dd></div>\n");
    }
    html.push_str("</dl>\n");
}

fn contents(html: &mut String, sections: &[Section]) {
    if sections.len() < 3 {
        return;
    }
    html.push_str("<nav class=\"contents\" aria-label=\"On this page\"><ol>");
    for (index, section) in sections.iter().enumerate() {
        let name = if section.name.is_empty() { &section.heading } else { &section.name };
        let _ = write!(html, "<li><a href=\"#s{}\">{}</a></li>", index + 1, escaped(&readable(name)));
    }
    html.push_str("</ol></nav>\n");
}

fn section(html: &mut String, number: usize, section: &Section) {
    let _ = write!(
        html,
        "<section id=\"s{number}\" aria-labelledby=\"h{number}\">\n<h2 id=\"h{number}\">{}</h2>\n",
        escaped(&readable(&section.heading))
    );
    for text in &section.text {
        let _ = writeln!(html, "<p>{}</p>", escaped(text));
    }
    if let Some((path, name)) = &section.link {
        let _ = writeln!(html, "<p><a href=\"{}\">{}</a></p>", escaped(path), escaped(name));
    }
    let columns: Vec<usize> = (0..section.table.columns.len())
        .filter(|&column| section.plot.is_none() || !section.table.columns[column].wide)
        .collect();
    let fits = columns.len() <= BESIDE && widths(&section.table, &columns) <= BESIDE_WIDTH;
    let layout = if section.plot.is_some() && fits { "pair beside" } else { "pair" };
    let _ = writeln!(html, "<div class=\"{layout}\">");
    if let Some(shown) = &section.plot {
        plot(html, number, shown);
    }
    if !columns.is_empty() {
        table(html, number, &section.heading, &section.table, &columns);
    }
    html.push_str("</div>\n</section>\n");
}

/// How wide the columns are together, in characters.
fn widths(table: &Table, columns: &[usize]) -> usize {
    let cell = |row: &Vec<String>, column: usize| row.get(column).map_or(0, |cell| cell.chars().count());
    let width = |&column: &usize| table.rows.iter().map(|row| cell(row, column)).max().unwrap_or(0);
    columns.iter().map(width).sum()
}

fn plot(html: &mut String, number: usize, plot: &Plot) {
    let (kind, rows) = match &plot.drawing {
        Drawing::Lines(_) => ("lines", 0),
        Drawing::Curve(_) => ("curve", 0),
        Drawing::Distribution(_) => ("distribution", 0),
        Drawing::Heat(heat) => ("heat", heat.rows.len()),
        Drawing::Bars(bars) => ("bars", bars.names.len()),
    };
    // Heights are known before anything is drawn, so that nothing jumps; the policy forbids a style of its own to each.
    let height = match rows {
        0..=4 if kind == "bars" => "low",
        0..=12 => "medium",
        13..=30 => "high",
        _ => "highest",
    };
    let _ = write!(
        html,
        "<figure><div class=\"plot {kind} {height}\" id=\"p{number}\"></div>\n<figcaption>{}</figcaption>\n\
         <script type=\"application/json\">{}</script></figure>\n",
        escaped(&plot.caption),
        embedded(plot),
    );
}

fn table(html: &mut String, number: usize, heading: &str, table: &Table, columns: &[usize]) {
    // Where the heading says it already, for those who hear it.
    let (title, class) = if table.title.is_empty() || table.title == heading {
        (heading, " class=\"unseen\"")
    } else {
        (table.title.as_str(), "")
    };
    let whole = if table.rows.len() <= WHOLE { " whole" } else { "" };
    let _ = write!(
        html,
        "<div class=\"scroll{whole}\" role=\"region\" aria-labelledby=\"c{number}\" tabindex=\"0\"><table><caption id=\"c{number}\"{class}>{}</caption>\n<thead><tr>",
        escaped(title)
    );
    let class = |column: usize| {
        let short =
            table.rows.iter().all(|row| row.get(column).is_none_or(|cell| cell.chars().count() <= SHORT));
        match (table.columns[column].right, short) {
            (true, _) => " class=\"n\"",
            (false, true) => " class=\"s\"",
            (false, false) => "",
        }
    };
    let classes: Vec<&str> = (0..table.columns.len()).map(class).collect();
    for &column in columns {
        let _ =
            write!(html, "<th scope=\"col\"{}>{}</th>", classes[column], escaped(table.columns[column].name));
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    for row in table.rows.iter().take(ROWS) {
        html.push_str("<tr>");
        for (at, &column) in columns.iter().enumerate() {
            let cell = row.get(column).map_or("", String::as_str);
            let full = if shortened(cell).is_some() {
                format!(" title=\"{}\"", escaped(cell))
            } else {
                String::new()
            };
            let cell = if table.columns[column].right { grouped(cell) } else { cell.to_owned() };
            let cell = escaped(&shortened(&cell).unwrap_or(cell));
            // The first column names the row.
            let _ = if at == 0 && !table.columns[column].right {
                write!(html, "<th scope=\"row\"{}{full}>{cell}</th>", classes[column])
            } else {
                write!(html, "<td{}{full}>{cell}</td>", classes[column])
            };
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table>");
    if table.rows.is_empty() {
        html.push_str("<p class=\"more\">None.</p>");
    }
    if let Some(more) = table.rows.len().checked_sub(ROWS).filter(|&more| more > 0) {
        let _ = write!(html, "<p class=\"more\">{more} more rows: <code>-o csv</code> has all of them.</p>");
    }
    html.push_str("</div>\n");
}

/// Text whose words are too long to be read, with each of them cut in its middle; `None`: it has none.
fn shortened(text: &str) -> Option<String> {
    let long = |word: &str| word.chars().count() > LONGEST_WORD;
    if !text.split(' ').any(long) {
        return None;
    }
    let cut = |word: &str| {
        let count = word.chars().count();
        if count <= LONGEST_WORD {
            return word.to_owned();
        }
        let (head, tail) = (LONGEST_WORD * 2 / 3, LONGEST_WORD / 3);
        let end: String = word.chars().skip(count - tail).collect();
        word.chars().take(head).chain(['…']).collect::<String>() + &end
    };
    Some(text.split(' ').map(cut).collect::<Vec<_>>().join(" "))
}

fn readable(text: &str) -> String {
    shortened(text).unwrap_or_else(|| text.to_owned())
}

/// A number whose digits are many, with its thousands set apart; any other text as it is.
fn grouped(cell: &str) -> String {
    let digits = cell.bytes().take_while(u8::is_ascii_digit).count();
    // What begins with a date, or isn't a number alone, stays.
    let (whole, rest) = cell.split_at(digits);
    if digits < 5 || !(rest.is_empty() || rest.starts_with(['.', ' '])) {
        return cell.to_owned();
    }
    let mut text = String::with_capacity(cell.len() + digits / 3);
    for (at, digit) in whole.char_indices() {
        if at > 0 && (digits - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text + rest
}

/// `text` as HTML text or the value of an attribute in quotes.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in printable(text).chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

/// JSON in a script element: nothing in it ends the element or begins a comment. All its strings are [`printable`].
fn embedded(plot: &Plot) -> String {
    let mut value = serde_json::to_value(plot).unwrap_or_default();
    clean(&mut value);
    value
        .to_string()
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

fn clean(value: &mut Value) {
    match value {
        Value::String(text) => *text = printable(text),
        Value::Array(values) => values.iter_mut().for_each(clean),
        Value::Object(fields) => fields.values_mut().for_each(clean),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests;
