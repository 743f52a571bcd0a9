//! Bytes of a file or of standard input, decompressed by what they begin with, whatever the file is called, and made UTF-8.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Cursor, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

use super::error::Error;

/// Read from the file at once.
const BUFFER: usize = 64 * 1024;

/// The largest window of zstd that is decompressed: what `zstd --ultra` and `--long` write unless told otherwise. It is memory.
const ZSTD_WINDOW: u64 = 128 << 20;

/// Bytes that can be read, whatever they were packed in.
pub(super) type Bytes = Box<dyn Read + Send>;

/// What `path` is called where it is spoken of.
pub(super) fn name(path: &Path) -> String {
    if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() }
}

/// Opens `path`, or standard input for `-`. Compressed bytes are counted in `read`; gives the file's length, too, where it has one.
pub(super) fn open(path: &Path, read: &Arc<AtomicU64>) -> Result<(Bytes, Option<u64>), Error> {
    let file = name(path);
    if path == Path::new("-") {
        return Ok((decompress(counted(io::stdin(), read), &file)?, None));
    }
    let opened = File::open(path).map_err(|source| Error::Open { file: file.clone(), source })?;
    let length = opened.metadata().ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len());
    Ok((decompress(counted(opened, read), &file)?, length))
}

/// What `bytes` are, decompressed.
pub(super) fn decompress(bytes: impl Read + Send + 'static, file: &str) -> Result<Bytes, Error> {
    let mut bytes = BufReader::with_capacity(BUFFER, bytes);
    let mut begin = Vec::new();
    // Not fill_buf(): a pipe may give less at first.
    (&mut bytes).take(8).read_to_end(&mut begin).map_err(|source| Error::Read {
        file: file.to_owned(),
        line: 0,
        source,
    })?;
    let format = |what| Err(Error::Format { file: file.to_owned(), what });
    let kind = Kind::of(&begin);
    let bytes = BufReader::with_capacity(BUFFER, Cursor::new(begin).chain(bytes));
    match kind {
        Kind::Gzip => Ok(Box::new(Text::of(MultiGzDecoder::new(bytes)))),
        Kind::Zstd => Ok(Box::new(Text::of(Zstd::new(bytes)))),
        Kind::Plain => Ok(Box::new(Text::of(bytes))),
        Kind::Other(what) => format(what),
    }
}

enum Kind {
    Plain,
    Gzip,
    Zstd,
    Other(&'static str),
}

impl Kind {
    fn of(begin: &[u8]) -> Self {
        match begin {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // The second is a frame to be skipped, with which pzstd begins.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'P', b'K', 3 | 5, 4 | 6, ..] => Self::Other("a zip archive"),
            [b'B', b'Z', b'h', ..] => Self::Other("compressed with bzip2"),
            [0xfd, b'7', b'z', b'X', b'Z', ..] => Self::Other("compressed with xz"),
            [b'P', b'A', b'R', b'1', ..] => Self::Other("a Parquet file"),
            [b'S', b'Q', b'L', b'i', b't', b'e', ..] => Self::Other("an SQLite database"),
            [0x7f, b'E', b'L', b'F', ..] => Self::Other("a program"),
            _ => Self::Plain,
        }
    }
}

fn counted<R: Read>(inner: R, read: &Arc<AtomicU64>) -> Counted<R> {
    Counted { inner, read: Arc::clone(read) }
}

struct Counted<R> {
    inner: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.read.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

/// Text in UTF-16, as Excel and Windows' shell write it, in UTF-8; all else as it is. What isn't UTF-16 is replaced.
struct Text<R> {
    bytes: R,
    begun: bool,
    /// How it reads UTF-16.
    unit: Option<fn([u8; 2]) -> u16>,
    /// What was read and not taken yet.
    ready: Cursor<Vec<u8>>,
}

impl<R> Text<R> {
    fn of(bytes: R) -> Self {
        Self { bytes, begun: false, unit: None, ready: Cursor::default() }
    }
}

impl<R: Read> Read for Text<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !std::mem::replace(&mut self.begun, true) {
            let mut begin = Vec::new();
            (&mut self.bytes).take(2).read_to_end(&mut begin)?;
            match begin[..] {
                [0xff, 0xfe] => self.unit = Some(u16::from_le_bytes),
                [0xfe, 0xff] => self.unit = Some(u16::from_be_bytes),
                _ => self.ready = Cursor::new(begin),
            }
        }
        loop {
            let length = self.ready.read(buffer)?;
            if length > 0 || buffer.is_empty() {
                return Ok(length);
            }
            let Some(unit) = self.unit else { return self.bytes.read(buffer) };
            let mut raw = Vec::new();
            (&mut self.bytes).take(BUFFER as u64).read_to_end(&mut raw)?;
            if raw.is_empty() {
                return Ok(0);
            }
            // Half a unit may stand at the end of the file.
            let unit = |pair: &[u8]| pair.try_into().map_or(0xfffd, unit);
            if raw.chunks(2).next_back().map(unit).is_some_and(|last| (0xd800..0xdc00).contains(&last)) {
                (&mut self.bytes).take(2).read_to_end(&mut raw)?;
            }
            let characters = char::decode_utf16(raw.chunks(2).map(unit));
            let text: String = characters.map(|known| known.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
            self.ready = Cursor::new(text.into_bytes());
        }
    }
}

/// All frames of a zstd file, one after the other: the library's own reader ends with the first.
struct Zstd<R> {
    bytes: R,
    frame: FrameDecoder,
    /// Whether a frame has begun.
    begun: bool,
}

impl<R: BufRead> Zstd<R> {
    fn new(bytes: R) -> Self {
        let mut frame = FrameDecoder::new();
        frame.set_max_window_size(ZSTD_WINDOW);
        Self { bytes, frame, begun: false }
    }

    /// Begins the next frame. False at the end.
    fn begin(&mut self) -> io::Result<bool> {
        while !self.bytes.fill_buf()?.is_empty() {
            match self.frame.reset(&mut self.bytes) {
                Ok(()) => {
                    self.begun = true;
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    if io::copy(&mut (&mut self.bytes).take(length), &mut io::sink())? < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string())),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.begun && !self.begin()? {
                return Ok(0);
            }
            while self.frame.can_collect() == 0 && !self.frame.is_finished() {
                self.frame
                    .decode_blocks(&mut self.bytes, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            }
            let length = self.frame.read(buffer)?;
            if length > 0 {
                return Ok(length);
            }
            self.begun = false;
        }
    }
}
