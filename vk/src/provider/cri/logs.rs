//! Reads container logs as a CRI runtime writes them: one file a container attempt, each line `TIME STREAM TAG CONTENT`, with tag `P`
//! where the runtime cut a long line and `F` where a line ends (Kubernetes' KEP "Redesign Kubernetes Logging").
//!
//! It survives rotation, truncation and garbage, holds at most one raw line in memory and finds the tail of a big file from its end.
//! It asks no runtime: where the file is and when its container has ended is the caller's business.

pub(super) mod links;
pub(super) mod rotate;

use std::{
    future::Future,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use futures::{
    future::{BoxFuture, FutureExt as _},
    stream::{self, BoxStream, StreamExt as _},
};
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncSeekExt as _, SeekFrom},
    time::Instant,
};

use crate::provider::{LogOptions, LogSource};

/// How often a followed file is looked at.
const POLL: Duration = Duration::from_millis(100);
/// How often a followed container is looked at.
const POLL_RUNNING: Duration = Duration::from_millis(500);
/// What one read asks for.
const BLOCK: usize = 64 * 1024;
/// Longest raw line that is kept: runtimes cut at 16 KiB. A longer one is garbage.
const MAX_LINE: usize = 1024 * 1024;
/// No header (time, stream, tag) is longer than this.
const MAX_HEADER: usize = 128;

/// Streams the log file at `path`. When following, asks `running` now and then whether anything can still be written, and goes on
/// until that is no longer so and the file is read to its end; otherwise until the end of the file.
///
/// # Errors
/// When the file can't be opened or read; later, that is an item of the stream.
pub async fn open<R, F>(
    path: PathBuf,
    options: &LogOptions,
    running: R,
) -> io::Result<BoxStream<'static, io::Result<Bytes>>>
where
    R: Fn() -> F + Send + 'static,
    F: Future<Output = bool> + Send + 'static,
{
    let mut file = File::open(&path).await?;
    let start = match options.tail_lines {
        Some(lines) => tail_start(&mut file, lines).await?,
        None => 0,
    };
    file.seek(SeekFrom::Start(start)).await?;
    let reader = Reader {
        path,
        file,
        position: start,
        pending: BytesMut::new(),
        skipping: false,
        formatter: Formatter::new(options),
        follow: options.follow.then(|| ended(running).boxed()),
        last_round: !options.follow,
    };
    Ok(stream::unfold(Some(reader), |reader| async {
        let mut reader = reader?;
        match reader.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(reader))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed())
}

/// Returns once the file has content, and after `limit` whether it has or not.
pub async fn first_words(path: &Path, limit: Duration) {
    let end = Instant::now() + limit;
    while Instant::now() < end && !tokio::fs::metadata(path).await.is_ok_and(|file| file.len() > 0) {
        tokio::time::sleep(POLL).await;
    }
}

async fn ended<R, F>(running: R)
where
    R: Fn() -> F,
    F: Future<Output = bool>,
{
    while running().await {
        tokio::time::sleep(POLL_RUNNING).await;
    }
}

struct Reader {
    path: PathBuf,
    file: File,
    position: u64,
    /// What was read and has no newline yet.
    pending: BytesMut,
    /// Inside a line that outgrew [`MAX_LINE`]: drop up to its newline.
    skipping: bool,
    formatter: Formatter,
    follow: Option<BoxFuture<'static, ()>>,
    /// The container has ended, or we don't follow: the next end of the file is the end of the log.
    last_round: bool,
}

impl Reader {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if self.formatter.full() {
                return Ok(None);
            }
            self.pending.reserve(BLOCK);
            let read = self.file.read_buf(&mut self.pending).await?;
            self.position += read as u64;
            if read > 0 {
                self.take_lines();
            } else if self.reopened().await? {
                continue;
            } else if self.last_round {
                self.take_unfinished();
                let rest = self.formatter.take();
                return Ok((!rest.is_empty()).then_some(rest));
            } else {
                self.wait().await;
                continue;
            }
            let lines = self.formatter.take();
            if !lines.is_empty() {
                return Ok(Some(lines));
            }
        }
    }

    /// Until there may be more to read. The runtime may still be writing what the container said last, so a final look at the file
    /// comes one interval after the container's end.
    async fn wait(&mut self) {
        let Some(ended) = &mut self.follow else { return };
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = ended => {
                self.follow = None;
                self.last_round = true;
                tokio::time::sleep(POLL).await;
            }
        }
    }

    /// At the end of the file: has the runtime gone on in a new one, or cut this one short?
    async fn reopened(&mut self) -> io::Result<bool> {
        let here = self.file.metadata().await?;
        if here.len() < self.position {
            self.file.seek(SeekFrom::Start(0)).await?;
            self.start_over();
            return Ok(true);
        }
        // Not following, the file that was opened is the whole answer.
        if self.follow.is_none() {
            return Ok(false);
        }
        let there = match tokio::fs::metadata(&self.path).await {
            Ok(there) => there,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        // A line written between our last read and the rename is still in the old file.
        if (there.ino(), there.dev()) == (here.ino(), here.dev()) || here.len() > self.position {
            return Ok(false);
        }
        self.file = File::open(&self.path).await?;
        self.start_over();
        Ok(true)
    }

    fn start_over(&mut self) {
        self.position = 0;
        self.pending.clear();
        self.skipping = false;
    }

    fn take_lines(&mut self) {
        while let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
            let line = self.pending.split_to(end + 1);
            if !std::mem::take(&mut self.skipping) && end <= MAX_LINE {
                self.formatter.line(&line[..end]);
            }
        }
        if self.pending.len() > MAX_LINE {
            self.pending.clear();
            self.skipping = true;
        }
    }

    fn take_unfinished(&mut self) {
        let line = self.pending.split();
        if !line.is_empty() && !self.skipping {
            self.formatter.line(&line);
        }
    }
}

/// One raw line, taken apart.
#[derive(Debug, PartialEq)]
struct Entry<'a> {
    time: jiff::Timestamp,
    source: LogSource,
    /// The line goes on in the next entry of the same stream.
    partial: bool,
    content: &'a [u8],
}

/// `None` for what is no log line.
fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let header =
        line.iter().enumerate().filter(|(_, byte)| **byte == b' ').nth(2).map_or(line.len(), |(at, _)| at);
    if header > MAX_HEADER {
        return None;
    }
    let mut fields = line.splitn(4, |&byte| byte == b' ');
    let time = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let source = match fields.next()? {
        b"stdout" => LogSource::Stdout,
        b"stderr" => LogSource::Stderr,
        _ => return None,
    };
    // Further tags may follow, separated by colons; only the first is defined.
    let partial = match fields.next()?.split(|&byte| byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Entry { time, source, partial, content: fields.next().unwrap_or_default() })
}

/// From raw lines to what the client asked for.
struct Formatter {
    timestamps: bool,
    since: Option<jiff::Timestamp>,
    source: Option<LogSource>,
    bytes_left: Option<u64>,
    /// Per stream: the next entry begins a line.
    at_start: [bool; 2],
    out: BytesMut,
}

impl Formatter {
    fn new(options: &LogOptions) -> Self {
        Self {
            timestamps: options.timestamps,
            since: options.since.map(timestamp),
            source: options.stream,
            bytes_left: options.limit_bytes,
            at_start: [true; 2],
            out: BytesMut::new(),
        }
    }

    fn full(&self) -> bool {
        self.bytes_left == Some(0)
    }

    fn line(&mut self, line: &[u8]) {
        let Some(entry) = parse(line) else {
            tracing::debug!(bytes = line.len(), "skipped what is no CRI log line");
            return;
        };
        if self.since.is_some_and(|since| entry.time < since)
            || self.source.is_some_and(|source| entry.source != source)
        {
            return;
        }
        let at_start = &mut self.at_start[usize::from(entry.source == LogSource::Stderr)];
        if std::mem::replace(at_start, !entry.partial) && self.timestamps {
            self.write(entry.time.strftime("%Y-%m-%dT%H:%M:%S.%9fZ ").to_string().as_bytes());
        }
        self.write(entry.content);
        if !entry.partial {
            self.write(b"\n");
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        let length = match &mut self.bytes_left {
            None => bytes.len(),
            Some(left) => {
                let length = usize::try_from(*left).map_or(bytes.len(), |left| bytes.len().min(left));
                *left -= length as u64;
                length
            }
        };
        self.out.extend_from_slice(&bytes[..length]);
    }

    fn take(&mut self) -> Bytes {
        self.out.split().freeze()
    }
}

/// A time that no log can have is as good as the nearest one that it can.
fn timestamp(time: SystemTime) -> jiff::Timestamp {
    jiff::Timestamp::try_from(time).unwrap_or(if time < SystemTime::UNIX_EPOCH {
        jiff::Timestamp::MIN
    } else {
        jiff::Timestamp::MAX
    })
}

/// The offset behind which `lines` lines stand, found from the end. A line that was cut into several entries counts once; one that
/// is still unfinished counts too.
async fn tail_start(file: &mut File, lines: u64) -> io::Result<u64> {
    let length = file.metadata().await?.len();
    if lines == 0 {
        return Ok(length);
    }
    let mut seen = 0;
    // The end of the raw line in hand, and the first bytes of what stands behind the block: a header may span both.
    let mut line_end = length;
    let mut is_unfinished = false;
    let mut behind = Vec::new();
    let mut block_end = length;
    while block_end > 0 {
        let block_start = block_end.saturating_sub(BLOCK as u64);
        let mut block = vec![0; usize::try_from(block_end - block_start).unwrap_or(BLOCK)];
        file.seek(SeekFrom::Start(block_start)).await?;
        file.read_exact(&mut block).await?;
        let block_length = block.len();
        is_unfinished |= block_end == length && block.last() != Some(&b'\n');
        block.extend_from_slice(&behind);
        // A line begins behind each newline, and at the beginning of the file.
        let newlines = (0..block_length).rev().filter(|&index| block[index] == b'\n').map(|index| index + 1);
        for begin in newlines.chain((block_start == 0).then_some(0)) {
            let offset = block_start + begin as u64;
            if offset == length {
                continue;
            }
            let header_end = (begin + MAX_HEADER + 1).min(block.len());
            let newline = u64::from(line_end != length || !is_unfinished);
            let is_sane = line_end - offset - newline <= MAX_LINE as u64;
            if is_sane && counts(&block[begin..header_end], line_end == length) {
                if seen == lines {
                    return Ok(line_end);
                }
                seen += 1;
            }
            line_end = offset;
        }
        block.truncate(MAX_HEADER + 1);
        behind = block;
        block_end = block_start;
    }
    Ok(0)
}

/// Does the raw line that begins so end a line of the log? `last`: nothing follows it in the file.
fn counts(beginning: &[u8], last: bool) -> bool {
    let line = beginning.split(|&byte| byte == b'\n').next().unwrap_or_default();
    parse(line).is_some_and(|entry| !entry.partial || last)
}

#[cfg(test)]
mod tests;
