//! A container's log, read with options while the runtime goes on writing, and compared with what a naive reader makes of the same
//! bytes. The first line has the options; what follows is the file, and behind each zero byte what happens to it next.

use std::{
    collections::VecDeque,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use futures::StreamExt as _;
use jiff::Timestamp;
use spillway_vk::provider::{LogOptions, LogSource, cri::logs};
use tempfile::TempDir;

/// No piece that a client is sent may be larger: one raw line at most is held, and what one read adds.
const MAX_PIECE: usize = 3 << 20;
/// A raw line that is longer is garbage; so is a header.
const MAX_LINE: usize = 1 << 20;
const MAX_HEADER: usize = 128;

/// What a runtime and a kubelet do to the file.
enum Step {
    Append(Vec<u8>),
    Rotate(Vec<u8>),
    Truncate,
}

/// Reads the log both ways.
pub fn run(bytes: &[u8]) {
    let (head, rest) = split_at(bytes, b'\n');
    let options = options(&String::from_utf8_lossy(head));
    let mut parts = rest.split(|byte| *byte == 0);
    let first = parts.next().unwrap_or_default().to_vec();
    let mut steps: VecDeque<Step> = parts.map(step).collect();
    let mut content = first;
    if !options.follow {
        // Whatever happened, happened before.
        for step in steps.drain(..) {
            match step {
                Step::Append(bytes) => content.extend(bytes),
                Step::Rotate(bytes) => content = bytes,
                Step::Truncate => content.clear(),
            }
        }
    }
    let mut naive = Naive::new(&options);
    naive.begin(&content, options.tail_lines);
    for step in &steps {
        naive.step(step);
    }
    let expected = naive.finish();
    let found = read(&content, steps, &options);
    assert!(
        found == expected,
        "{options:?}\n found    {:?}\n expected {:?}",
        String::from_utf8_lossy(&found[..found.len().min(2000)]),
        String::from_utf8_lossy(&expected[..expected.len().min(2000)])
    );
}

fn split_at(bytes: &[u8], at: u8) -> (&[u8], &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == at);
    (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
}

fn step(bytes: &[u8]) -> Step {
    match bytes {
        [b'R', rest @ ..] => Step::Rotate(rest.to_vec()),
        [b'T', ..] => Step::Truncate,
        // A binary log has zero bytes, too.
        [b'0', rest @ ..] => Step::Append([b"\0", rest].concat()),
        // And lines may be very long: so many kibibytes of it.
        [b'*', kibibytes, rest @ ..] => {
            let wanted = (usize::from(*kibibytes) * 16) << 10;
            Step::Append(
                rest.iter().copied().cycle().take(if rest.is_empty() { 0 } else { wanted }).collect(),
            )
        }
        rest => Step::Append(rest.to_vec()),
    }
}

fn options(line: &str) -> LogOptions {
    let mut options = LogOptions::default();
    for word in line.split_whitespace() {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "follow" => options.follow = true,
            "timestamps" => options.timestamps = true,
            "tail" => options.tail_lines = value.parse().ok(),
            "limit" => options.limit_bytes = value.parse().ok(),
            "stdout" => options.stream = Some(LogSource::Stdout),
            "stderr" => options.stream = Some(LogSource::Stderr),
            "since" => {
                let seconds = Duration::from_secs(value.trim_start_matches('-').parse().unwrap_or_default());
                options.since = if value.starts_with('-') {
                    SystemTime::UNIX_EPOCH.checked_sub(seconds)
                } else {
                    SystemTime::UNIX_EPOCH.checked_add(seconds)
                };
            }
            _ => {}
        }
    }
    options
}

/// What the real reader sends, while the steps happen whenever it asks whether the container still runs.
fn read(content: &[u8], steps: VecDeque<Step>, options: &LogOptions) -> Vec<u8> {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("0.log");
    fs::write(&path, content).expect("a file");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let steps = Arc::new(Mutex::new((steps, 0)));
    let there = path.clone();
    let running = move || {
        let (steps, path) = (Arc::clone(&steps), there.clone());
        async move {
            let mut steps = steps.lock().expect("nobody panics with it");
            let next = steps.0.pop_front();
            steps.1 += 1;
            let count = steps.1;
            next.map(|step| happen(&path, step, count)).is_some()
        }
    };
    runtime.block_on(async {
        let mut found = Vec::new();
        let mut pieces = logs::open(path, options, running).await.expect("the file is there");
        while let Some(piece) = pieces.next().await {
            let piece = piece.expect("the file can be read");
            assert!(!piece.is_empty() && piece.len() <= MAX_PIECE, "a piece of {} bytes", piece.len());
            found.extend_from_slice(&piece);
        }
        found
    })
}

fn happen(path: &Path, step: Step, count: usize) {
    match step {
        Step::Append(bytes) => {
            let mut file = fs::OpenOptions::new().append(true).open(path).expect("the file is there");
            file.write_all(&bytes).expect("there is room");
        }
        Step::Rotate(bytes) => {
            let old = PathBuf::from(format!("{}.{count}", path.display()));
            fs::rename(path, old).expect("the file is there");
            fs::write(path, bytes).expect("there is room");
        }
        Step::Truncate => fs::write(path, "").expect("there is room"),
    }
}

/// A line taken apart by its blanks.
struct Line<'a> {
    time: Timestamp,
    is_stderr: bool,
    partial: bool,
    content: &'a [u8],
}

fn line(raw: &[u8]) -> Option<Line<'_>> {
    let blanks: Vec<usize> = (0..raw.len()).filter(|at| raw[*at] == b' ').take(3).collect();
    let (&[first, second], rest) = blanks.split_first_chunk()?;
    let third = rest.first().copied().unwrap_or(raw.len());
    if raw.len() > MAX_LINE || third > MAX_HEADER {
        return None;
    }
    let is_stderr = match &raw[first + 1..second] {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    let tag = &raw[second + 1..third];
    let partial = match tag.split(|byte| *byte == b':').next() {
        Some(b"P") => true,
        Some(b"F") => false,
        _ => return None,
    };
    Some(Line {
        time: String::from_utf8(raw[..first].to_vec()).ok()?.parse().ok()?,
        is_stderr,
        partial,
        content: raw.get(third + 1..).unwrap_or_default(),
    })
}

/// Reads everything at once, and keeps all of it.
struct Naive<'a> {
    options: &'a LogOptions,
    /// Behind the last newline of the file.
    rest: Vec<u8>,
    begun: [bool; 2],
    /// Bytes of the file that were read.
    length: usize,
    out: Vec<u8>,
}

impl<'a> Naive<'a> {
    fn new(options: &'a LogOptions) -> Self {
        Self { options, rest: Vec::new(), begun: [false; 2], length: 0, out: Vec::new() }
    }

    /// The file as it is found.
    fn begin(&mut self, content: &[u8], tail: Option<u64>) {
        let Some(tail) = tail else { return self.read(content) };
        let raws: Vec<&[u8]> = content.split_inclusive(|byte| *byte == b'\n').collect();
        let ends = |at: usize| {
            let raw = raws[at].strip_suffix(b"\n").unwrap_or(raws[at]);
            line(raw).is_some_and(|line| !line.partial || at + 1 == raws.len())
        };
        let mut left = tail;
        let mut from = raws.len();
        while from > 0 && tail > 0 {
            if ends(from - 1) {
                if left == 0 {
                    break;
                }
                left -= 1;
            }
            from -= 1;
        }
        self.length = raws[..from].iter().map(|raw| raw.len()).sum();
        self.read(&raws[from..].concat());
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Append(bytes) => self.read(bytes),
            Step::Rotate(bytes) => {
                self.start_over();
                self.read(bytes);
            }
            Step::Truncate if self.length > 0 => self.start_over(),
            Step::Truncate => {}
        }
    }

    fn start_over(&mut self) {
        self.rest.clear();
        self.length = 0;
    }

    fn read(&mut self, bytes: &[u8]) {
        self.length += bytes.len();
        self.rest.extend_from_slice(bytes);
        let all = std::mem::take(&mut self.rest);
        for raw in all.split_inclusive(|byte| *byte == b'\n') {
            match raw.strip_suffix(b"\n") {
                Some(raw) => self.take(raw),
                None => self.rest = raw.to_vec(),
            }
        }
    }

    fn take(&mut self, raw: &[u8]) {
        let Some(line) = line(raw) else { return };
        let source = if line.is_stderr { LogSource::Stderr } else { LogSource::Stdout };
        let early = self.options.since.is_some_and(|since| SystemTime::from(line.time) < since);
        if early || self.options.stream.is_some_and(|wanted| wanted != source) {
            return;
        }
        let begun = &mut self.begun[usize::from(line.is_stderr)];
        if self.options.timestamps && !*begun {
            self.out.extend(line.time.strftime("%Y-%m-%dT%H:%M:%S.%9fZ ").to_string().bytes());
        }
        *begun = line.partial;
        self.out.extend_from_slice(line.content);
        if !line.partial {
            self.out.push(b'\n');
        }
    }

    fn finish(mut self) -> Vec<u8> {
        let rest = std::mem::take(&mut self.rest);
        if !rest.is_empty() {
            self.take(&rest);
        }
        if let Some(limit) = self.options.limit_bytes {
            self.out.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        }
        self.out
    }
}
