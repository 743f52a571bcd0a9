//! Tables as kubectl prints them, and the same values as JSON, YAML and CSV.

use std::{
    fmt::Write as _,
    io::{self, BufWriter, IsTerminal as _, StdoutLock, Write},
};

use serde::Serialize;
use unicode_width::UnicodeWidthStr as _;

use crate::terminal::{is_unsafe, printable};

/// `-o`: how a result is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns.
    #[default]
    Table,
    /// Aligned columns, with more of them.
    Wide,
    /// One JSON document, with everything that is known.
    Json,
    /// The same as YAML.
    Yaml,
    /// Comma-separated values, one header for each table.
    Csv,
}

/// Rows below a header.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// What stands above it; nothing where empty.
    pub title: String,
    /// Its columns, from left to right.
    pub columns: Vec<Column>,
    /// As many cells each as there are columns.
    pub rows: Vec<Vec<String>>,
}

/// A column of a [`Table`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// In capitals, as kubectl has it.
    pub name: &'static str,
    /// Numbers are aligned to the right.
    pub right: bool,
    /// Shown by `-o wide` (and CSV) only.
    pub wide: bool,
    /// In text not a column, but a line of its own below the row: for sentences.
    pub below: bool,
}

impl Column {
    /// Words, aligned to the left.
    pub fn text(name: &'static str) -> Self {
        Self { name, right: false, wide: false, below: false }
    }

    /// Numbers, aligned to the right.
    pub fn number(name: &'static str) -> Self {
        Self { name, right: true, wide: false, below: false }
    }

    /// A sentence, on a line of its own below the row where there is one; its name in lower case introduces it.
    pub fn sentence(name: &'static str) -> Self {
        Self { below: true, ..Self::text(name) }
    }

    /// The same, shown by `-o wide` only.
    #[must_use]
    pub fn wide(self) -> Self {
        Self { wide: true, ..self }
    }
}

/// Standard output, on which results are printed: [`print()`] flushes it, whoever writes to it otherwise does so. That nobody reads on, as `head` does not, is an
/// error that [`nobody_reads`] knows.
pub fn stdout() -> BufWriter<impl Write> {
    BufWriter::new(Standard(io::stdout().lock()))
}

struct Standard(StdoutLock<'static>);

/// The reader of standard output is gone. A broken pipe may be one to a server, too; this one ends the program quietly.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads standard output any more")]
struct NobodyReads;

impl Standard {
    fn marked<T>(result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => io::Error::new(io::ErrorKind::BrokenPipe, NobodyReads),
            _ => error,
        })
    }
}

impl Write for Standard {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Self::marked(self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Self::marked(self.0.flush())
    }
}

/// Whether something failed because standard output's reader has gone.
pub fn nobody_reads(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        matches!(inner, Some(inner) if inner.is::<NobodyReads>())
    })
}

/// Prints `value` as JSON or YAML, or its `tables` as text or CSV.
///
/// # Errors
/// When it can't be written.
pub fn print(
    out: &mut dyn Write,
    format: Format,
    value: &impl Serialize,
    tables: &[Table],
) -> io::Result<()> {
    print_within(out, format, value, tables, usize::MAX)
}

/// The same for a terminal of so many columns: sentences are broken there, and rows of a table that is wider are told one by one.
///
/// # Errors
/// When it can't be written.
pub fn print_within(
    out: &mut dyn Write,
    format: Format,
    value: &impl Serialize,
    tables: &[Table],
    columns: usize,
) -> io::Result<()> {
    match format {
        Format::Json => {
            let text = serde_json::to_string_pretty(value)?;
            writeln!(out, "{}", escaped(&text))?;
        }
        Format::Yaml => {
            let text = serde_saphyr::to_string(value).map_err(io::Error::other)?;
            for_eyes_or_machines(out, &text)?;
        }
        Format::Table | Format::Wide => {
            for (index, table) in tables.iter().enumerate() {
                if index > 0 {
                    writeln!(out)?;
                }
                aligned(out, table, format == Format::Wide, columns)?;
            }
        }
        Format::Csv => {
            let mut text = Vec::new();
            for (index, table) in tables.iter().enumerate() {
                if index > 0 {
                    writeln!(text)?;
                }
                comma_separated(&mut text, table)?;
            }
            for_eyes_or_machines(out, &String::from_utf8_lossy(&text))?;
        }
    }
    out.flush()
}

/// Machines get a text as it is; a terminal gets no control character but the ends of lines.
fn for_eyes_or_machines(out: &mut dyn Write, text: &str) -> io::Result<()> {
    if io::stdout().is_terminal() {
        out.write_all(visible(text).as_bytes())
    } else {
        out.write_all(text.as_bytes())
    }
}

fn visible(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// JSON in which no control character is left, and none that changes the direction of text: it means the same.
fn escaped(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for character in json.chars() {
        if character != '\n' && is_unsafe(character) {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        } else {
            escaped.push(character);
        }
    }
    escaped
}

/// Between columns, as kubectl has it.
const GAP: &str = "   ";

fn aligned(out: &mut dyn Write, table: &Table, wide: bool, columns: usize) -> io::Result<()> {
    if !table.title.is_empty() {
        writeln!(out, "{}", broken(&printable(&table.title), columns, 0))?;
    }
    let shown: Vec<usize> = table
        .columns
        .iter()
        .enumerate()
        .filter(|(_, column)| (wide || !column.wide) && !column.below)
        .map(|(index, _)| index)
        .collect();
    let rows: Vec<Vec<String>> =
        std::iter::once(shown.iter().map(|&index| table.columns[index].name.to_owned()).collect())
            .chain(table.rows.iter().map(|row| shown.iter().map(|&index| printable(&row[index])).collect()))
            .collect();
    let widths: Vec<usize> =
        (0..shown.len()).map(|at| rows.iter().map(|row| row[at].width()).max().unwrap_or(0)).collect();
    let right: Vec<bool> = shown.iter().map(|&index| table.columns[index].right).collect();
    let fits = widths.iter().sum::<usize>() + GAP.len() * widths.len().saturating_sub(1) <= columns;
    for (at, row) in rows.iter().enumerate() {
        if fits {
            writeln!(out, "{}", padded(row, &widths, &right))?;
        } else if at > 0 {
            writeln!(out, "{}", told(&rows[0], row, &right, columns))?;
        }
        // The first is the header.
        let cells = at.checked_sub(1).and_then(|at| table.rows.get(at));
        for (column, cell) in table.columns.iter().zip(cells.into_iter().flatten()) {
            if column.below && !cell.is_empty() {
                let sentence = format!("    {}: {}", column.name.to_lowercase(), printable(cell));
                writeln!(out, "{}", broken(&sentence, columns, 6))?;
            }
        }
    }
    Ok(())
}

/// A row in columns of these widths.
fn padded(row: &[String], widths: &[usize], right: &[bool]) -> String {
    let cells = row.iter().zip(widths).zip(right).map(|((cell, width), right)| {
        let pad = " ".repeat(width - cell.width());
        if *right { format!("{pad}{cell}") } else { format!("{cell}{pad}") }
    });
    cells.collect::<Vec<_>>().join(GAP).trim_end().to_owned()
}

/// A row that has no place in a line: what it is of, and below it each number with its name.
fn told(names: &[String], row: &[String], right: &[bool], columns: usize) -> String {
    let heads = right.iter().take_while(|right| !**right).count().max(1);
    let head = row.iter().take(heads).filter(|cell| !cell.is_empty() && *cell != "-");
    let head = head.map(String::as_str).collect::<Vec<_>>().join(GAP);
    let rest = names.iter().zip(row).skip(heads).filter(|(_, cell)| !cell.is_empty() && *cell != "-");
    let rest: Vec<_> = rest.map(|(name, cell)| format!("{} {cell}", name.to_lowercase())).collect();
    let head = broken(&head, columns, 4);
    if rest.is_empty() {
        head
    } else {
        format!("{head}\n{}", broken(&format!("    {}", rest.join(", ")), columns, 4))
    }
}

/// A line in pieces of so many columns at most, all but the first moved in by `indent`; longer words stay whole.
fn broken(line: &str, columns: usize, indent: usize) -> String {
    if line.width() <= columns {
        return line.to_owned();
    }
    let begin = line.len() - line.trim_start().len();
    let mut pieces = line[..begin].to_owned();
    let mut used = begin;
    for (at, word) in line[begin..].split(' ').enumerate() {
        let width = word.width();
        if at > 0 && used + 1 + width > columns {
            pieces.push('\n');
            pieces.push_str(&" ".repeat(indent));
            used = indent;
        } else if at > 0 {
            pieces.push(' ');
            used += 1;
        }
        pieces.push_str(word);
        used += width;
    }
    pieces
}

fn comma_separated(out: &mut dyn Write, table: &Table) -> io::Result<()> {
    let mut writer = csv::Writer::from_writer(out);
    writer.write_record(table.columns.iter().map(|column| column.name.to_lowercase().replace(' ', "_")))?;
    for row in &table.rows {
        let cells = row.iter().zip(&table.columns);
        writer
            .write_record(cells.map(|(cell, column)| inert(if column.right { alone(cell) } else { cell })))?;
    }
    writer.flush()
}

/// A number without what people read beside it: `7 (88%)` is 7, and what is not known is empty.
fn alone(cell: &str) -> &str {
    match cell {
        "?" | "-" => "",
        _ => cell.split_once(" (").map_or(cell, |(number, _)| number),
    }
}

/// A cell that no spreadsheet takes for a formula: those begin with one of a few characters. Numbers stay numbers.
fn inert(cell: &str) -> String {
    // Alone it says that there is nothing.
    let formula =
        cell.starts_with(['=', '+', '-', '@', '\t', '\r']) && cell.parse::<f64>().is_err() && cell != "-";
    if formula { format!("'{cell}") } else { cell.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::{Column, Format, Table, alone, print, print_within, visible};

    fn table() -> Table {
        Table {
            title: "Pools".to_owned(),
            columns: vec![Column::text("NAME"), Column::number("GPUS"), Column::text("MODEL").wide()],
            rows: vec![
                vec!["a\u{1b}[2J".to_owned(), "8".to_owned(), "T4".to_owned()],
                vec!["=1+1".to_owned(), "-16".to_owned(), "模型".to_owned()],
            ],
        }
    }

    fn printed(format: Format) -> String {
        let mut out = Vec::new();
        print(&mut out, format, &serde_json::json!({}), &[table()]).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_are_aligned_and_escape_codes_shown() {
        assert_eq!(
            printed(Format::Table),
            "Pools\nNAME         GPUS\na\\u{1b}[2J      8\n=1+1          -16\n"
        );
        assert!(printed(Format::Wide).contains("MODEL"));
    }

    #[test]
    fn a_narrow_terminal_gets_rows_one_by_one() {
        let table = Table {
            title: "POOLS".to_owned(),
            columns: vec![
                Column::text("NAME"),
                Column::text("MODEL"),
                Column::number("FREE"),
                Column::number("USED"),
                Column::text("LARGEST POD"),
                Column::sentence("WHY"),
            ],
            rows: vec![
                ["nvidia.com/gpu", "-", "3 (38%)", "-", "2 on gpu-1", "all of it is taken by others"]
                    .map(str::to_owned)
                    .to_vec(),
            ],
        };
        let within = |columns: usize| {
            let mut out = Vec::new();
            print_within(&mut out, Format::Table, &(), std::slice::from_ref(&table), columns).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            within(30),
            "POOLS\nnvidia.com/gpu\n    free 3 (38%), largest pod\n    2 on gpu-1\n    why: all of it is taken by\n      others\n"
        );
        assert!(within(60).contains("NAME             MODEL"), "{}", within(60));
        // No place at all is no reason to say nothing.
        assert!(within(0).contains("nvidia.com/gpu"));
    }

    #[test]
    fn no_escape_code_passes_to_a_terminal() {
        let mut out = Vec::new();
        let name = "a\u{1b}[2J\u{9b}31m\u{202e}\n模";
        print(&mut out, Format::Json, &name, &[]).unwrap();
        let json = String::from_utf8(out).unwrap();
        assert_eq!(json, "\"a\\u001b[2J\\u009b31m\\u202e\\n模\"\n");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), name);
        assert_eq!(visible("name\na\u{1b}[2J,8\n"), "name\na\\u{1b}[2J,8\n");
    }

    #[test]
    fn a_spreadsheet_finds_no_formula() {
        assert_eq!(printed(Format::Csv), "name,gpus,model\na\u{1b}[2J,8,T4\n'=1+1,-16,模型\n");
    }

    #[test]
    fn numbers_of_csv_stand_alone() {
        assert_eq!(["7 (88%)", "?", "-", "0.5", "-3"].map(alone), ["7", "", "", "0.5", "-3"]);
    }
}
