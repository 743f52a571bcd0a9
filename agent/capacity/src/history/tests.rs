//! The recorded history against a naive one in memory.

use std::path::PathBuf;

use proptest::prelude::*;

use super::{
    Key, Owner, Pool, Recorded, Sample, What,
    database::{Added, Database, Error, MIGRATIONS},
    retention::Room,
};

const ROOM: u64 = 1 << 30;
const YEARS_S: i64 = 10 * 365 * 86_400;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("history.db")
    }

    fn database(&self) -> Database {
        Database::write(&self.file(), ROOM).unwrap()
    }
}

fn key(what: What, namespace: &str) -> Key {
    let pool = Pool {
        name: "T4".to_owned(),
        resource: "nvidia.com/gpu".to_owned(),
        model: "T4".to_owned(),
        serverless: false,
    };
    Key { what, pool, owner: Owner { namespace: namespace.to_owned(), ..Owner::default() } }
}

fn sample(at_s: i64, gpus: &[(&str, u64)]) -> Sample {
    let milli_gpus =
        gpus.iter().map(|(namespace, gpus)| (key(What::Allocated, namespace), gpus * 1000)).collect();
    Sample { at_s, milli_gpus }
}

fn total(recorded: &Recorded, namespace: &str) -> i64 {
    let cells = recorded.series.get(&key(What::Allocated, namespace));
    cells.into_iter().flatten().map(|cell| cell.milli_gpu_s).sum()
}

fn seen(recorded: &Recorded) -> i64 {
    recorded.steps.iter().map(|step| step.seen_s).sum()
}

fn intact(database: &Database) {
    let said: String = database.connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(said, "ok");
}

#[test]
fn a_sample_stands_for_the_time_before_it_and_what_was_not_seen_is_a_gap() {
    let folder = Folder::new();
    let mut database = folder.database();
    assert_eq!(database.add(&sample(3600, &[("a", 2)]), 60).unwrap(), Added::Stored { for_s: 60 });
    assert_eq!(database.add(&sample(3660, &[("a", 3)]), 60).unwrap(), Added::Stored { for_s: 60 });
    // Late, and the one before it missing.
    assert_eq!(database.add(&sample(3790, &[("a", 1)]), 60).unwrap(), Added::Stored { for_s: 130 });
    // An hour away.
    assert_eq!(database.add(&sample(7390, &[]), 60).unwrap(), Added::Stored { for_s: 60 });
    let recorded = database.recorded(0, 10_000, 60).unwrap();
    assert_eq!(total(&recorded, "a"), 1000 * (2 * 60 + 3 * 60 + 130));
    assert_eq!(seen(&recorded), 60 + 60 + 130 + 60);
    let ends: Vec<i64> = recorded.steps.iter().map(|step| step.end_s).collect();
    assert_eq!(ends, [3600, 3660, 3840, 7440]);
    assert_eq!(database.extent().unwrap(), Some((3540, 7390)));
}

#[test]
fn a_hole_within_hours_is_one() {
    let step = |hour: i64, seen_s| super::Step { end_s: hour * 3600, len_s: 3600, seen_s };
    // Nothing from half past one to a quarter past four.
    let steps = vec![step(1, 3600), step(2, 1800), step(5, 2700), step(6, 3600), step(7, 3000)];
    let recorded = Recorded { steps, ..Recorded::default() };
    let view = super::view::View { until_s: 8 * 3600, step_s: 3600, ..Default::default() };
    let found = super::History::of(String::new(), &recorded, &view);
    let gaps: Vec<_> = found.seen.gaps.iter().map(|gap| (gap.since.as_str(), gap.unseen_s)).collect();
    assert_eq!(gaps, [("1970-01-01T01:30:00Z", 9900), ("1970-01-01T06:50:00Z", 4200)]);
}

#[test]
fn a_clock_that_jumps_makes_no_time_twice() {
    let folder = Folder::new();
    let mut database = folder.database();
    for at_s in [1000, 1060, 1120] {
        database.add(&sample(at_s, &[("a", 1)]), 60).unwrap();
    }
    assert_eq!(database.add(&sample(1120, &[("a", 9)]), 60).unwrap(), Added::Known);
    assert_eq!(database.add(&sample(1090, &[("a", 9)]), 60).unwrap(), Added::Known);
    // Far ahead, and back again: what comes then is recorded.
    database.add(&sample(9_000_000, &[("a", 1)]), 60).unwrap();
    assert_eq!(database.add(&sample(1180, &[("a", 1)]), 60).unwrap(), Added::Stored { for_s: 60 });
    let recorded = database.recorded(0, i64::MAX / 2, 3600).unwrap();
    assert_eq!((total(&recorded, "a"), seen(&recorded)), (5 * 60 * 1000, 5 * 60));
}

#[test]
fn who_is_absent_in_part_of_a_step_had_least_none() {
    let folder = Folder::new();
    let mut database = folder.database();
    database.add(&sample(60, &[("a", 4), ("b", 1)]), 60).unwrap();
    database.add(&sample(120, &[("b", 2)]), 60).unwrap();
    let check = |database: &Database| {
        let recorded = database.recorded(0, 4000, 3600).unwrap();
        let cell = |namespace| recorded.series[&key(What::Allocated, namespace)][0];
        assert_eq!((cell("a").least, cell("a").most), (0, 4000));
        assert_eq!((cell("b").least, cell("b").most), (1000, 2000));
    };
    check(&database);
    database.sum_up(200 * 86_400, YEARS_S).unwrap();
    check(&database);
}

#[test]
fn one_file_has_one_recorder() {
    let folder = Folder::new();
    let first = folder.database();
    let error = Database::write(&folder.file(), ROOM).unwrap_err();
    let told = error.to_string();
    assert!(matches!(error, Error::Held { .. }), "{told}");
    assert!(told.contains(&format!("process {}", std::process::id())), "{told}");
    // Who reads is not kept out.
    Database::read(&folder.file()).unwrap();
    drop(first);
    Database::write(&folder.file(), ROOM).unwrap();
}

#[test]
fn foreign_and_newer_files_are_refused_and_left_alone() {
    let folder = Folder::new();
    let path = folder.file();
    for bytes in [&b"at,pool,owner,gpus\n1,2,3,4\n"[..], &[0x5a; 5000][..]] {
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(Database::write(&path, ROOM), Err(Error::Foreign { .. })));
        assert!(matches!(Database::read(&path), Err(Error::Foreign { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(Database::read(&path), Err(Error::Open { .. })));
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (a)").unwrap();
    assert!(matches!(Database::write(&path, ROOM), Err(Error::Foreign { .. })));
    std::fs::remove_file(&path).unwrap();
    folder.database().connection.pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(Database::write(&path, ROOM), Err(Error::Newer { found: 99, .. })));
}

#[test]
fn an_older_file_is_brought_up_to_date() {
    let folder = Folder::new();
    let mut database = folder.database();
    database.add(&sample(60, &[("a", 4)]), 60).unwrap();
    // One that fails leaves nothing of itself.
    let there = MIGRATIONS.len();
    let broken = [MIGRATIONS, &["CREATE TABLE half (a); INSERT INTO nowhere VALUES (1)"]].concat();
    assert!(matches!(database.migrate(&broken), Err(Error::Sqlite { what: "migrate", .. })));
    database.connection.query_row("SELECT a FROM half", [], |_| Ok(())).unwrap_err();
    let migrations = [MIGRATIONS, &["ALTER TABLE span ADD COLUMN note TEXT"]].concat();
    database.migrate(&migrations).unwrap();
    database.connection.query_row("SELECT note FROM span", [], |_| Ok(())).unwrap();
    let version: i64 = database.connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    assert_eq!(usize::try_from(version).unwrap(), there + 1);
    intact(&database);
}

/// The example is of the first version and stays so: it knew nothing of what is stranded.
#[test]
fn a_file_of_the_first_version_is_read_and_goes_on() {
    let folder = Folder::new();
    let example = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/history.db");
    std::fs::copy(example, folder.file()).unwrap();
    let old = Database::read(&folder.file()).unwrap();
    assert_eq!(old.stranded_since().unwrap(), None);
    let (_, end_s) = old.extent().unwrap().unwrap();
    let before = old.recorded(0, end_s, 3600).unwrap();
    assert!(before.series.len() > 3);
    drop(old);
    let mut new = folder.database();
    assert_eq!(new.stranded_since().unwrap(), Some(end_s));
    assert_eq!(new.recorded(0, end_s, 3600).unwrap(), before);
    let mut sample = sample(end_s + 60, &[("a", 1)]);
    sample.milli_gpus.insert(key(What::Stranded, ""), 3000);
    new.add(&sample, 60).unwrap();
    drop(new);
    let read = Database::read(&folder.file()).unwrap();
    let after = read.recorded(end_s, end_s + 60, 60).unwrap();
    assert_eq!(after.series[&key(What::Stranded, "")][0].milli_gpu_s, 3000 * 60);
    assert_eq!(folder.database().stranded_since().unwrap(), Some(end_s), "it is noted once");
}

#[test]
fn names_are_bounded_in_length_and_number() {
    let folder = Folder::new();
    let mut database = folder.database();
    let long = "é".repeat(1000);
    database.add(&sample(60, &[(long.as_str(), 1)]), 60).unwrap();
    let recorded = database.recorded(0, 3600, 60).unwrap();
    let (key, _) = recorded.series.first_key_value().unwrap();
    assert_eq!(key.owner.namespace, "é".repeat(253));

    let names: Vec<String> =
        (0..super::database::MOST_SERIES + 500).map(|index| format!("n{index}")).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), 1)).collect();
    database.add(&sample(120, &many), 60).unwrap();
    let recorded = database.recorded(60, 120, 60).unwrap();
    assert!(recorded.series.len() <= super::database::MOST_SERIES + 1);
    let all: i64 = recorded.series.values().flatten().map(|cell| cell.milli_gpu_s).sum();
    assert_eq!(all, i64::try_from(many.len()).unwrap() * 60_000, "nobody's GPUs are lost");
    assert!(total(&recorded, super::database::OTHERS) > 0);
    // Names that nothing is left of make room.
    database.sum_up(YEARS_S * 3, YEARS_S).unwrap();
    assert_eq!(database.names(), 0);
}

#[test]
fn absurd_numbers_do_not_overflow() {
    let folder = Folder::new();
    let mut database = folder.database();
    let mut absurd = sample(60, &[("a", 1)]);
    absurd.milli_gpus.insert(key(What::Capacity, ""), u64::MAX);
    for minute in 1..100 {
        absurd.at_s = minute * 60;
        database.add(&absurd, 60).unwrap();
    }
    database.sum_up(200 * 86_400, YEARS_S).unwrap();
    assert_eq!(total(&database.recorded(0, 1_000_000, 3600).unwrap(), "a"), 99 * 60_000);
}

/// Adds a sample as the recorder does: gives up what it can until there is room.
fn add_making_room(database: &mut Database, sample: &Sample) -> (bool, Vec<Room>) {
    let mut given_up = Vec::new();
    loop {
        match database.add(sample, 60) {
            Ok(_) => return (true, given_up),
            Err(error) if error.full() => match database.make_room(sample.at_s) {
                Ok(Room::None) => return (false, given_up),
                Ok(room) => given_up.push(room),
                Err(error) if error.full() => return (false, given_up),
                Err(error) => panic!("{error}"),
            },
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_full_file_gives_up_its_oldest_detail_and_goes_on() {
    let folder = Folder::new();
    let mut database = Database::write(&folder.file(), 400 << 10).unwrap();
    let names: Vec<String> = (0..40).map(|index| format!("namespace-{index}")).collect();
    let gpus: Vec<_> = names.iter().map(|name| (name.as_str(), 2)).collect();
    let (mut stored, mut given_up) = (0, Vec::new());
    for minute in 1..=1200_i64 {
        let (added, rooms) = add_making_room(&mut database, &sample(minute * 60, &gpus));
        stored += i64::from(added);
        given_up.extend(rooms);
    }
    assert_eq!(stored, 1200);
    assert!(given_up.iter().any(|room| matches!(room, Room::Detail(_))), "{given_up:?}");
    assert!(!given_up.iter().any(|room| matches!(room, Room::Oldest(_))), "{given_up:?}");
    assert_eq!(total(&database.recorded(0, 100_000, 3600).unwrap(), "namespace-7"), 1200 * 60 * 2000);
    intact(&database);
    assert!(std::fs::metadata(folder.file()).unwrap().len() <= 400 << 10);
}

#[test]
fn a_file_without_any_room_stores_nothing_by_halves() {
    let folder = Folder::new();
    let mut database = Database::write(&folder.file(), 64 << 10).unwrap();
    let names: Vec<String> = (0..200).map(|index| format!("namespace-{index}")).collect();
    let gpus: Vec<_> = names.iter().map(|name| (name.as_str(), 2)).collect();
    let mut stored = 0;
    for minute in 1..=30_i64 {
        stored += i64::from(add_making_room(&mut database, &sample(minute * 60, &gpus)).0);
    }
    assert!(stored > 0 && stored < 30, "{stored}");
    let recorded = database.recorded(0, 100_000, 60).unwrap();
    assert_eq!(i64::try_from(recorded.steps.len()).unwrap(), stored);
    for name in &names {
        assert_eq!(total(&recorded, name), stored * 60 * 2000, "{name}");
    }
    intact(&database);
    // Where there is room again, it goes on.
    drop(database);
    let mut database = folder.database();
    assert!(add_making_room(&mut database, &sample(60_000, &gpus)).0);
}

/// Where the writer of the next test writes; it is none where this isn't set.
const WRITES_TO: &str = "SPILLWAY_TEST_WRITES_TO";

/// Not a test of its own: what [`killed_at_any_moment`] starts and kills.
#[test]
#[ignore = "the other half of killed_at_any_moment"]
fn writer() {
    let Some(path) = std::env::var_os(WRITES_TO) else { return };
    let mut database = Database::write(std::path::Path::new(&path), 300 << 10).unwrap();
    let names: Vec<String> = (0..30).map(|index| format!("namespace-{index}")).collect();
    let gpus: Vec<_> = names.iter().map(|name| (name.as_str(), 1)).collect();
    let begin_s = database.extent().unwrap().map_or(0, |(_, end_s)| end_s);
    for minute in 1.. {
        let at_s = begin_s + minute * 60;
        if add_making_room(&mut database, &sample(at_s, &gpus)).0 {
            println!("stored {at_s}");
        }
    }
}

#[test]
fn killed_at_any_moment() {
    use std::io::{BufRead as _, BufReader};
    let folder = Folder::new();
    let mut stored = 0;
    for round in 0..12_u64 {
        let mut writer = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "history::tests::writer", "--ignored", "--nocapture"])
            .env(WRITES_TO, folder.file())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        let told = |line: Option<std::io::Result<String>>| -> Option<i64> {
            line?.ok()?.rsplit_once("stored ")?.1.parse().ok()
        };
        // Whatever the test harness prints comes before.
        while told(lines.next()).is_none() {}
        std::thread::sleep(std::time::Duration::from_micros(1000 * 17 * round % 97_003));
        writer.kill().unwrap();
        let last = std::iter::from_fn(|| lines.next()).filter_map(|line| told(Some(line))).last();
        writer.wait().unwrap();
        // Read first, as who asks for the history does: that alone repairs what was under way.
        let database = Database::read(&folder.file()).unwrap();
        intact(&database);
        let (_, end_s) = database.extent().unwrap().unwrap();
        assert!(last.is_none_or(|last| last <= end_s), "stored {last:?} and {end_s} is the last");
        let recorded = database.recorded(0, i64::MAX / 2, 86_400).unwrap();
        assert_eq!(seen(&recorded) % 60, 0);
        stored = seen(&recorded) / 60;
        for index in [0, 13, 29] {
            assert_eq!(total(&recorded, &format!("namespace-{index}")), stored * 60 * 1000);
        }
        assert_eq!(stored * 60, end_s, "a sample is missing");
    }
    assert!(stored > 12, "{stored}");
}

/// Not a test: how `examples/history.db` was made, by the first version. The examples of `--help` read it as it stands, and nothing but `record`, which takes a cluster and weeks,
/// writes such a file for a user.
#[test]
#[ignore = "writes a file of the repository"]
fn example() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/history.db");
    let _ = std::fs::remove_file(&path);
    let mut database = Database::write(&path, ROOM).unwrap();
    let october_s = 1_790_812_800;
    let cloud = Pool {
        name: "burst".to_owned(),
        resource: "nvidia.com/gpu".to_owned(),
        serverless: true,
        ..Pool::default()
    };
    for hour in 1..=744_u64 {
        // Nobody recorded on the afternoon of the 14th.
        if (324..=330).contains(&hour) {
            continue;
        }
        let (day, of_day) = (hour / 24, hour % 24);
        let work = if day % 7 < 5 && (8..20).contains(&of_day) { 6 } else { 2 };
        let mut sample = sample(october_s + i64::try_from(hour).unwrap() * 3600, &[]);
        let mut set = |what, namespace, gpus: u64| {
            let mut key = key(what, namespace);
            key.pool.name = "Tesla-T4".to_owned();
            key.pool.model = "Tesla-T4".to_owned();
            sample.milli_gpus.insert(key, gpus * 1000);
        };
        set(What::Capacity, "", 12);
        set(What::Allocated, "research", (work + hour * 7 % 3).min(8));
        set(What::Allocated, "speech", 2 + hour / 24 % 3);
        let burst =
            Key { what: What::Allocated, pool: cloud.clone(), owner: key(What::Allocated, "research").owner };
        sample.milli_gpus.insert(burst, if work > 2 && hour % 5 == 0 { 3000 } else { 0 });
        database.add(&sample, 3600).unwrap();
    }
    database.sum_up(october_s + 365 * 86_400, YEARS_S).unwrap();
    database.connection.execute_batch("VACUUM").unwrap();
}

#[test]
fn the_oldest_goes_when_its_time_is_over() {
    let folder = Folder::new();
    let mut database = folder.database();
    for hour in 1..=50 {
        database.add(&sample(hour * 3600, &[("a", 1)]), 3600).unwrap();
    }
    database.sum_up(200 * 86_400 + 25 * 3600, 200 * 86_400).unwrap();
    let recorded = database.recorded(0, 1_000_000, 3600).unwrap();
    assert_eq!(recorded.steps.first().map(|step| step.end_s), Some(26 * 3600));
    assert_eq!(recorded.steps.len(), 25);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// However often, and in whatever order, old samples are summed up: no sum of whole hours changes, nor what was least and most of an hour.
    #[test]
    fn summing_up_changes_no_sum(
        steps in prop::collection::vec((1..400_i64, prop::collection::vec(0..9_u64, 3)), 1..120),
        ages in prop::collection::vec((0..3_u8, 0..300_i64), 0..6),
    ) {
        let folder = Folder::new();
        let mut database = folder.database();
        let names = ["a", "b", "c"];
        let mut at_s = 1_000_000;
        for (step, gpus) in &steps {
            at_s += step;
            let gpus: Vec<_> = names.iter().copied().zip(gpus.iter().copied()).collect();
            database.add(&sample(at_s, &gpus), 60).unwrap();
        }
        let before = database.recorded(0, at_s + 3600, 3600).unwrap();
        for (kind, days) in ages {
            if kind == 0 {
                database.make_room(at_s + days).unwrap();
            } else {
                database.sum_up(at_s + days * 86_400, YEARS_S).unwrap();
            }
            prop_assert_eq!(&database.recorded(0, at_s + 3600, 3600).unwrap(), &before);
        }
        database.sum_up(at_s + 1000 * 86_400, YEARS_S).unwrap();
        prop_assert_eq!(&database.recorded(0, at_s + 3600, 3600).unwrap(), &before);
        let day = database.recorded(0, at_s + 90_000, 86_400).unwrap();
        for name in names {
            prop_assert_eq!(total(&day, name), total(&before, name));
        }
    }
}
