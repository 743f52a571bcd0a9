//! Rows of comma-separated values, one at a time, of bounded length, with the line on which each begins.

use std::{
    fmt,
    io::{self, Cursor, Read},
    sync::Arc,
};

use csv::ByteRecord;

use super::{error::Error, input::Bytes};

/// The longest row. What is longer has lost a quote.
pub(super) const ROW: usize = 1 << 20;

/// What may separate columns, the likeliest first.
const DELIMITERS: [u8; 4] = [b',', b'\t', b';', b'|'];

/// A file's rows below its header.
pub(super) struct Rows {
    /// The file's name.
    pub(super) file: Arc<str>,
    /// Its columns, trimmed.
    pub(super) header: Vec<String>,
    reader: csv::Reader<Limited>,
    delimiter: u8,
    record: ByteRecord,
    /// Lines above those that the reader has seen.
    above: u64,
    line: u64,
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows").field("file", &self.file).field("line", &self.line).finish_non_exhaustive()
    }
}

impl Rows {
    /// Reads the header; where there is none, columns are called `1`, `2`, ….
    pub(super) fn new(bytes: Bytes, file: &str, delimiter: Option<u8>, header: bool) -> Result<Self, Error> {
        let First { line: mut first, above, said, mut bytes } = first_line(bytes, file)?;
        let mut delimiter = delimiter.or(said).unwrap_or_else(|| sniff(&first));
        if header && !first.contains(&delimiter) && first.trim_ascii().windows(2).any(|pair| pair == b"  ") {
            delimiter = b'\t';
            first = Blanks::default().tabs(&first);
            bytes = Box::new(Aligned { bytes, blanks: Blanks::default(), text: Cursor::default() });
        }
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .delimiter(delimiter)
            .terminator(csv::Terminator::Any(b'\n'))
            .buffer_capacity(64 * 1024)
            .from_reader(Limited { bytes, left: ROW, last: b'\n', ended: false });
        let mut names = ByteRecord::new();
        if !header {
            // The first row is read twice: once for how many columns there are.
            let mut one = csv::ReaderBuilder::new();
            one.has_headers(false).flexible(true).delimiter(delimiter);
            let mut one = one.from_reader(&first[..]);
            let _ = one.read_byte_record(&mut names);
        } else if !reader.read_byte_record(&mut names).map_err(|error| failed(file, above, error))? {
            return Err(Error::Empty { file: file.to_owned() });
        }
        let header = names.iter().enumerate().map(|(index, name)| {
            if header { String::from_utf8_lossy(name).trim().to_owned() } else { (index + 1).to_string() }
        });
        Ok(Self {
            file: Arc::from(file),
            header: header.collect(),
            reader,
            delimiter,
            record: ByteRecord::new(),
            above,
            line: above + 1,
        })
    }

    /// The line of the header.
    pub(super) fn header_line(&self) -> u64 {
        self.above + 1
    }

    /// The line of the row that was read last.
    pub(super) fn line(&self) -> u64 {
        self.line
    }

    /// The next row and its line.
    pub(super) fn next(&mut self) -> Result<Option<(u64, &ByteRecord)>, Error> {
        self.reader.get_mut().left = ROW;
        loop {
            let more = self
                .reader
                .read_byte_record(&mut self.record)
                .map_err(|error| failed(&self.file, self.line, error))?;
            if !more {
                return Ok(None);
            }
            let blank = self.record.len() == 1 && self.record.as_slice().trim_ascii().is_empty();
            if !blank {
                break;
            }
        }
        if matches!(self.delimiter, b',' | b';') && self.record.as_slice().contains(&b',') {
            let decimal = self.delimiter == b';';
            let numbers: Vec<_> = self.record.iter().map(|cell| without_comma(cell, decimal)).collect();
            if numbers.iter().any(Option::is_some) {
                let cells = self.record.iter().zip(&numbers);
                self.record = cells.map(|(cell, number)| number.as_deref().unwrap_or(cell)).collect();
            }
        }
        // The reader's own position of a row is that of the blank lines above it. Each row has taken the end of its last line.
        let within = self.record.as_slice().split(|&byte| byte == b'\n').count() as u64;
        let line = (self.above + self.reader.position().line()).saturating_sub(within);
        self.line = line.max(self.line + 1);
        Ok(Some((self.line, &self.record)))
    }
}

/// A number as a spreadsheet writes it, as it is read everywhere: `1.234,5` where semicolons separate columns and so the comma is `decimal`, else `1,234.5`.
fn without_comma(cell: &[u8], decimal: bool) -> Option<Vec<u8>> {
    let cell = cell.trim_ascii();
    let (thousands, point) = if decimal { (b'.', b',') } else { (b',', b'.') };
    let digits = |text: &[u8]| text.iter().all(u8::is_ascii_digit);
    let (whole, fraction) = match cell.iter().position(|&byte| byte == point) {
        Some(at) => (&cell[..at], &cell[at + 1..]),
        None => (cell, &cell[cell.len()..]),
    };
    let unsigned = whole.strip_prefix(b"-").unwrap_or(whole);
    let groups: Vec<&[u8]> = unsigned.split(|&byte| byte == thousands).collect();
    let is_grouped = (1..=3).contains(&groups[0].len()) && groups[1..].iter().all(|group| group.len() == 3);
    if !cell.contains(&b',') || !digits(fraction) || !groups.iter().all(|group| digits(group)) {
        return None;
    }
    if groups.len() > 1 && !is_grouped || unsigned.is_empty() {
        return None;
    }
    let mut number: Vec<u8> = whole.iter().copied().filter(|&byte| byte != thousands).collect();
    if !fraction.is_empty() {
        number.push(b'.');
        number.extend(fraction);
    }
    Some(number)
}

fn failed(file: &str, line: u64, error: csv::Error) -> Error {
    let file = file.to_owned();
    let source = match error.into_kind() {
        csv::ErrorKind::Io(source) => source,
        // Rows of any length and any bytes are taken: nothing else can fail.
        other => io::Error::other(format!("{other:?}")),
    };
    if source.get_ref().is_some_and(|inner| inner.downcast_ref::<Exceeded>().is_some()) {
        Error::TooLong { file, line: line + 1, limit: ROW }
    } else {
        Error::Read { file, line, source }
    }
}

/// The first line that is neither blank nor a comment.
struct First {
    line: Vec<u8>,
    /// How many lines stand above it.
    above: u64,
    /// What separates columns, where a line above says it for spreadsheets: `sep=;`.
    said: Option<u8>,
    /// All bytes from it on.
    bytes: Bytes,
}

fn first_line(mut bytes: Bytes, file: &str) -> Result<First, Error> {
    let mut begin = Vec::new();
    let mut above = 0;
    let mut at = 0;
    let mut ended = false;
    let mut said = None;
    loop {
        if let Some(length) = begin[at..].iter().position(|&byte| byte == b'\n') {
            let line = &begin[at..at + length];
            let text = if at == 0 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
            let blank = text.iter().all(u8::is_ascii_whitespace);
            let separator = match text.trim_ascii_end() {
                [b's', b'e', b'p', b'=', separator] => Some(*separator),
                _ if text.strip_suffix(b"\r").unwrap_or(text) == b"sep=\t" => Some(b'\t'),
                _ => None,
            };
            if !blank && text.first() != Some(&b'#') && separator.is_none() {
                break;
            }
            said = said.or(separator);
            at += length + 1;
            above += 1;
        } else if ended {
            break;
        } else if begin.len() - at > ROW {
            return Err(Error::TooLong { file: file.to_owned(), line: above + 1, limit: ROW });
        } else {
            begin.drain(..at);
            at = 0;
            let read = (&mut bytes)
                .take(64 * 1024)
                .read_to_end(&mut begin)
                .map_err(|source| Error::Read { file: file.to_owned(), line: above, source })?;
            ended = read == 0;
        }
    }
    if begin[at..].starts_with(b"\xef\xbb\xbf") {
        at += 3;
    }
    begin.drain(..at);
    let first = begin.iter().position(|&byte| byte == b'\n').map_or(begin.len(), |length| length);
    let line = begin[..first].to_vec();
    if line.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::Empty { file: file.to_owned() });
    }
    if line.iter().any(|byte| byte.is_ascii_control() && !matches!(byte, b'\t' | b'\r')) {
        return Err(Error::Format { file: file.to_owned(), what: "no text" });
    }
    if matches!(line.trim_ascii_start().first(), Some(b'{' | b'[')) {
        return Err(Error::Format { file: file.to_owned(), what: "JSON" });
    }
    Ok(First { line, above, said, bytes: Box::new(Cursor::new(begin).chain(bytes)) })
}

/// What separates the columns of `line`: what stands there most often, outside quotes.
fn sniff(line: &[u8]) -> u8 {
    let mut counts = [0_usize; DELIMITERS.len()];
    let mut quoted = false;
    for byte in line {
        if *byte == b'"' {
            quoted = !quoted;
        } else if !quoted && let Some(index) = DELIMITERS.iter().position(|delimiter| delimiter == byte) {
            counts[index] += 1;
        }
    }
    let most = counts.iter().max().copied().unwrap_or(0);
    let index = counts.iter().position(|&count| count == most).unwrap_or(0);
    DELIMITERS[index]
}

/// Ends in an error where a row is too long: the reader of rows would hold all of it. Every line ends with a line feed, the last one, too, so that lines can be counted.
struct Limited {
    bytes: Bytes,
    left: usize,
    /// The last byte that was read.
    last: u8,
    ended: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("row too long")]
struct Exceeded;

impl Read for Limited {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::Error::other(Exceeded));
        }
        if self.ended || buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let before = self.last;
            let length = self.bytes.read(buffer)?;
            let read = &mut buffer[..length];
            let Some(&last) = read.last() else {
                self.ended = true;
                if before == b'\n' || before == b'\r' {
                    return Ok(0);
                }
                buffer[0] = b'\n';
                return Ok(1);
            };
            self.last = last;
            let kept =
                if before == b'\r' || read.contains(&b'\r') { line_feeds(read, before) } else { length };
            self.left = self.left.saturating_sub(length);
            // A line feed alone, of a pair that was read in two.
            if kept > 0 {
                return Ok(kept);
            }
        }
    }
}

/// Text whose columns are padded with blanks, as `kubectl get -o custom-columns` writes it, with tabs instead.
struct Aligned {
    bytes: Bytes,
    blanks: Blanks,
    /// What was read and not taken yet.
    text: Cursor<Vec<u8>>,
}

impl Read for Aligned {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let length = self.text.read(buffer)?;
            if length > 0 || buffer.is_empty() {
                return Ok(length);
            }
            let mut raw = Vec::new();
            (&mut self.bytes).take(64 * 1024).read_to_end(&mut raw)?;
            if raw.is_empty() {
                return Ok(0);
            }
            self.text = Cursor::new(self.blanks.tabs(&raw));
        }
    }
}

/// Blanks that were read and not written yet.
#[derive(Default)]
struct Blanks {
    count: usize,
    /// Something stands before them in the line.
    line_begun: bool,
}

impl Blanks {
    /// Makes one tab of two and more blanks, and nothing of those at either end of a line.
    fn tabs(&mut self, text: &[u8]) -> Vec<u8> {
        let mut tabs = Vec::with_capacity(text.len() + 1);
        for &byte in text {
            if byte == b' ' {
                self.count += 1;
                continue;
            }
            let ends = matches!(byte, b'\n' | b'\r');
            if self.count > 0 && self.line_begun && !ends {
                tabs.push(if self.count == 1 { b' ' } else { b'\t' });
            }
            *self = Self { count: 0, line_begun: !ends };
            tabs.push(byte);
        }
        tabs
    }
}

/// Makes one line feed of each carriage return, and of each pair of both. Gives how many bytes are left.
fn line_feeds(bytes: &mut [u8], before: u8) -> usize {
    let mut before = before;
    let mut kept = 0;
    for at in 0..bytes.len() {
        let byte = bytes[at];
        if !(byte == b'\n' && before == b'\r') {
            bytes[kept] = if byte == b'\r' { b'\n' } else { byte };
            kept += 1;
        }
        before = byte;
    }
    kept
}
