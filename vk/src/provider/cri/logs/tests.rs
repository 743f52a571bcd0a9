use std::{
    fmt::Write as _,
    future::pending,
    io::Write as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const SAMPLE: &str = "\
2026-11-20T10:00:00.1Z stdout F one
2026-11-20T10:00:01.22Z stderr F oops
2026-11-20T10:00:02.333333333Z stdout P half and
2026-11-20T10:00:03Z stdout F  half
not a log line at all
2026-11-20T12:00:04+02:00 stdout F:tag2 zoned
2026-11-20T10:00:05Z stdout F \n";

async fn collect(stream: BoxStream<'static, io::Result<Bytes>>) -> String {
    let parts: Vec<_> = stream.collect().await;
    parts.into_iter().map(|part| String::from_utf8(part.unwrap().to_vec()).unwrap()).collect()
}

async fn read(text: &str, options: LogOptions) -> String {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("0.log");
    std::fs::write(&path, text).unwrap();
    collect(open(path, &options, pending).await.unwrap()).await
}

fn at(time: &str) -> SystemTime {
    time.parse::<jiff::Timestamp>().unwrap().into()
}

#[tokio::test]
async fn whole_log_joins_partial_lines_and_skips_garbage() {
    assert_eq!(read(SAMPLE, LogOptions::default()).await, "one\noops\nhalf and half\nzoned\n\n");
}

#[tokio::test]
async fn timestamps_have_nine_digits_in_utc_and_stand_only_where_a_line_begins() {
    let options = LogOptions { timestamps: true, ..LogOptions::default() };
    assert_eq!(
        read(SAMPLE, options).await,
        "2026-11-20T10:00:00.100000000Z one\n\
         2026-11-20T10:00:01.220000000Z oops\n\
         2026-11-20T10:00:02.333333333Z half and half\n\
         2026-11-20T10:00:04.000000000Z zoned\n\
         2026-11-20T10:00:05.000000000Z \n"
    );
}

#[tokio::test]
async fn one_stream_alone() {
    let options = LogOptions { stream: Some(LogSource::Stderr), ..LogOptions::default() };
    assert_eq!(read(SAMPLE, options).await, "oops\n");
}

#[tokio::test]
async fn since_is_inclusive() {
    let options = LogOptions { since: Some(at("2026-11-20T10:00:04Z")), ..LogOptions::default() };
    assert_eq!(read(SAMPLE, options).await, "zoned\n\n");
}

#[tokio::test]
async fn limit_counts_bytes_sent_and_cuts_inside_a_line() {
    let options = LogOptions { limit_bytes: Some(7), ..LogOptions::default() };
    assert_eq!(read(SAMPLE, options).await, "one\noop");
    let options = LogOptions { limit_bytes: Some(0), ..LogOptions::default() };
    assert_eq!(read(SAMPLE, options).await, "");
}

#[tokio::test]
async fn tail_counts_a_cut_line_once() {
    for (lines, expected) in [
        (0, ""),
        (1, "\n"),
        (2, "zoned\n\n"),
        (3, "half and half\nzoned\n\n"),
        (4, "oops\nhalf and half\nzoned\n\n"),
    ] {
        let options = LogOptions { tail_lines: Some(lines), ..LogOptions::default() };
        assert_eq!(read(SAMPLE, options).await, expected, "--tail={lines}");
    }
    let options = LogOptions { tail_lines: Some(1000), ..LogOptions::default() };
    assert_eq!(read(SAMPLE, options).await, read(SAMPLE, LogOptions::default()).await);
}

#[tokio::test]
async fn a_raw_line_without_its_newline_is_shown_when_not_following() {
    let options = LogOptions { tail_lines: Some(2), ..LogOptions::default() };
    let text =
        "2026-11-20T10:00:00Z stdout F a\n2026-11-20T10:00:00Z stdout F b\n2026-11-20T10:00:00Z stdout F c";
    assert_eq!(read(text, options).await, "b\nc\n");
}

#[tokio::test]
async fn an_endless_line_of_garbage_is_dropped_without_being_kept() {
    let mut text = "x".repeat(3 * MAX_LINE);
    text.push_str("\n2026-11-20T10:00:00Z stdout F after\n");
    assert_eq!(read(&text, LogOptions::default()).await, "after\n");
}

#[tokio::test]
async fn a_missing_file_is_an_error() {
    let opened = open("/nonexistent/0.log".into(), &LogOptions::default(), pending).await;
    assert_eq!(opened.err().unwrap().kind(), io::ErrorKind::NotFound);
}

fn append(path: &Path, content: &str) {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    writeln!(file, "2026-11-20T10:00:00Z stdout F {content}").unwrap();
}

#[tokio::test]
async fn following_sees_new_lines_rotation_truncation_and_the_last_words() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("0.log");
    append(&path, "first");
    let running = Arc::new(AtomicBool::new(true));
    let still_running = running.clone();
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let asked = move || std::future::ready(still_running.load(Ordering::Relaxed));
    let mut log = open(path.clone(), &options, asked).await.unwrap();
    let mut next = async || String::from_utf8(log.next().await.unwrap().unwrap().to_vec()).unwrap();
    assert_eq!(next().await, "first\n");

    append(&path, "second");
    assert_eq!(next().await, "second\n");

    // Rotated between two looks, with a line on either side of the rename.
    append(&path, "old file");
    std::fs::rename(&path, folder.path().join("0.log.20261120-120000")).unwrap();
    append(&path, "new file");
    let mut seen = next().await;
    if !seen.contains("new") {
        seen += &next().await;
    }
    assert_eq!(seen, "old file\nnew file\n");

    // Cut short while someone reads: between two reads it can't be told from a file that has grown.
    let cut = async {
        std::fs::write(&path, "").unwrap();
        tokio::time::sleep(3 * POLL).await;
        append(&path, "cut short");
    };
    let (seen, ()) = tokio::join!(next(), cut);
    assert_eq!(seen, "cut short\n");

    append(&path, "last words");
    running.store(false, Ordering::Relaxed);
    assert_eq!(next().await, "last words\n");
    assert!(log.next().await.is_none());
}

#[tokio::test]
async fn what_is_no_line_for_the_reader_is_none_for_the_tail() {
    let tags = |count: usize| format!("2026-11-20T10:00:06Z stdout F:{} x\n", "t".repeat(count));
    let long = format!("2026-11-20T10:00:06Z stdout F {}\n", "x".repeat(MAX_LINE));
    let whole = "2026-11-20T10:00:07Z stdout F last\n";
    for garbage in [tags(MAX_HEADER), long] {
        for end in [whole.to_owned(), String::new()] {
            let options = LogOptions { tail_lines: Some(1), ..LogOptions::default() };
            let expected = if end.is_empty() { "\n" } else { "last\n" };
            assert_eq!(read(&format!("{SAMPLE}{garbage}{end}"), options).await, expected);
        }
    }
    let options = LogOptions { tail_lines: Some(1), ..LogOptions::default() };
    assert_eq!(read(&format!("{SAMPLE}{}", tags(90)), options).await, "x\n");
}

proptest! {
    #[test]
    fn never_panics_on_foreign_bytes(bytes: Vec<u8>, tail: Option<u8>, limit: Option<u8>) {
        let options = LogOptions {
            tail_lines: tail.map(u64::from), limit_bytes: limit.map(u64::from), timestamps: true, ..LogOptions::default()
        };
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("0.log");
        std::fs::write(&path, bytes).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let parts: Vec<_> = runtime.block_on(async {
            open(path, &options, pending).await.unwrap().collect().await
        });
        prop_assert!(parts.iter().all(Result::is_ok));
    }

    /// Against the obvious way: read all, take the last. Lines long enough that they cross the blocks of the backward search.
    #[test]
    fn tail_equals_the_end_of_the_whole(
        lines in prop::collection::vec((0_usize..40_000, 0_usize..3), 0..12),
        tail in 0_usize..14,
    ) {
        let mut text = String::new();
        for (number, (length, parts)) in lines.iter().enumerate() {
            for _ in 0..*parts {
                writeln!(text, "2026-11-20T10:00:00Z stdout P {}", "p".repeat(*length)).unwrap();
            }
            writeln!(text, "2026-11-20T10:00:00Z stdout F {number}{}", "f".repeat(*length)).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (whole, tailed) = runtime.block_on(async {
            let options = LogOptions { tail_lines: Some(tail as u64), ..LogOptions::default() };
            (read(&text, LogOptions::default()).await, read(&text, options).await)
        });
        let skip = lines.len().saturating_sub(tail);
        prop_assert_eq!(tailed, whole.split_inclusive('\n').skip(skip).collect::<String>());
    }
}

#[tokio::test]
async fn first_words_are_waited_for_only_until_they_are_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.log");
    // Nobody says anything: the limit is over. It need not be long to be seen.
    first_words(&path, Duration::from_millis(10)).await;
    let (waits, says) = tokio::join!(
        tokio::time::timeout(Duration::from_mins(1), first_words(&path, Duration::from_hours(1))),
        tokio::fs::write(&path, "2026-01-01T00:00:00Z stdout F hello\n"),
    );
    says.unwrap();
    assert!(waits.is_ok());
}
