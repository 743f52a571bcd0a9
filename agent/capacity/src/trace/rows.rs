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
        let (first, above, bytes) = first_line(bytes, file)?;
        let delimiter = delimiter.unwrap_or_else(|| sniff(&first));
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
        // The reader's own position of a row is that of the blank lines above it. Each row has taken the end of its last line.
        let within = self.record.as_slice().split(|&byte| byte == b'\n').count() as u64;
        let line = (self.above + self.reader.position().line()).saturating_sub(within);
        self.line = line.max(self.line + 1);
        Ok(Some((self.line, &self.record)))
    }
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

/// The first line that is neither blank nor a comment, how many lines stand above it, and all bytes from it on.
fn first_line(mut bytes: Bytes, file: &str) -> Result<(Vec<u8>, u64, Bytes), Error> {
    let mut begin = Vec::new();
    let mut above = 0;
    let mut at = 0;
    let mut ended = false;
    loop {
        if let Some(length) = begin[at..].iter().position(|&byte| byte == b'\n') {
            let line = &begin[at..at + length];
            let text = if at == 0 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
            let blank = text.iter().all(u8::is_ascii_whitespace);
            if !blank && text.first() != Some(&b'#') {
                break;
            }
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
    Ok((line, above, Box::new(Cursor::new(begin).chain(bytes))))
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
