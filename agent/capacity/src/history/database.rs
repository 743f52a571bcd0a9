//! One `SQLite` file that keeps years of samples. It owns the schema and who may write; [`super::retention`] owns what becomes of old samples.
//!
//! It keeps a rollback journal and no write-ahead log: that needs no memory shared between processes, so that any volume will do, those of a network included; and a
//! persistent journal keeps the room that making room takes when the disk is full. A sample is one transaction, on the disk before it is called stored.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, TryLockError},
    io::{Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, Transaction, params};

use super::{Key, Owner, Pool, Sample, What};

/// In the file's head, to tell it from other files.
const APPLICATION_ID: i32 = 0x5370_7748;
/// What brings a file from one version of the schema to the next. Its version is how many of them it has seen.
pub(super) const MIGRATIONS: &[&str] = &["
    CREATE TABLE series (
        id INTEGER PRIMARY KEY,
        what INTEGER NOT NULL,
        pool TEXT NOT NULL, resource TEXT NOT NULL, model TEXT NOT NULL, serverless INTEGER NOT NULL,
        namespace TEXT NOT NULL, label TEXT NOT NULL, user TEXT NOT NULL,
        UNIQUE (what, pool, resource, model, serverless, namespace, label, user)
    ) STRICT;
    -- level: 0 a sample, 1 fifteen minutes, 2 an hour. at_s: where it ends. for_s: the seconds that were seen of it.
    CREATE TABLE span (
        level INTEGER NOT NULL, at_s INTEGER NOT NULL, for_s INTEGER NOT NULL, samples INTEGER NOT NULL,
        PRIMARY KEY (level, at_s)
    ) STRICT, WITHOUT ROWID;
    -- least and most are of the samples that it is in: in the others of its span it is zero.
    CREATE TABLE point (
        level INTEGER NOT NULL, at_s INTEGER NOT NULL, series INTEGER NOT NULL,
        milli_gpu_s INTEGER NOT NULL, least INTEGER NOT NULL, most INTEGER NOT NULL, samples INTEGER NOT NULL,
        PRIMARY KEY (level, at_s, series)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE setting (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
", "
    -- From here on what is stranded is recorded, too: of the time before it is not known, and not zero.
    INSERT INTO setting (key, value) SELECT 'stranded-since', coalesce(max(at_s), 0) FROM span;
"];
/// How long another process's transaction is waited for.
const BUSY: Duration = Duration::from_secs(15);
/// More different series are not told apart: a cluster where names come and go without end must not fill the disk with names.
pub const MOST_SERIES: usize = 20_000;
/// Longer names are cut: Kubernetes has none.
const LONGEST_NAME: usize = 253;
/// More is no number of GPUs; sums over years stay within 64 bits.
const MOST_MILLI_GPUS: i64 = 10_000_000_000;
/// Whoever comes after [`MOST_SERIES`].
pub const OTHERS: &str = "(others)";

/// What can be wrong with the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another recorder is at it.
    #[error(
        "{path} is being written by another recorder ({holder}): one file has one recorder; stop that one, or give this one another file"
    )]
    Held {
        /// The file.
        path: PathBuf,
        /// What the other one said about itself.
        holder: String,
    },
    /// It can't be opened or locked.
    #[error("can't open {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It was made by somebody else.
    #[error("{path} is no recorded history: it was not made by `kubectl spillway record`")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// It was made by a newer version.
    #[error(
        "{path} has version {found} of the schema and this program knows versions up to {known}: use the newer program"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: usize,
        /// The newest that is known.
        known: usize,
    },
    /// `SQLite` says so.
    #[error("can't {what} {path}")]
    Sqlite {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: rusqlite::Error,
    },
}

impl Error {
    /// Whether there is no room: on the disk, or within the limit given.
    pub fn full(&self) -> bool {
        matches!(self, Self::Sqlite { source, .. } if source.sqlite_error_code() == Some(ErrorCode::DiskFull))
    }

    /// Whether it is somebody else's lock, which passes.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Sqlite { source, .. } if source.sqlite_error_code() == Some(ErrorCode::DatabaseBusy))
    }
}

/// What became of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// It stands for so many seconds before it.
    Stored {
        /// Seconds.
        for_s: i64,
    },
    /// That time is recorded already: the clock was put back.
    Known,
}

/// A recorded history.
#[derive(Debug)]
pub struct Database {
    pub(super) connection: Connection,
    path: PathBuf,
    ids: HashMap<Key, i64>,
    /// Held as long as this is.
    _lock: Option<File>,
}

impl Database {
    /// Opens the file to write to it, and makes it where there is none. It may grow to `most_bytes`.
    ///
    /// # Errors
    /// When another recorder has it, it is none, or it can't be written.
    pub fn write(path: &Path, most_bytes: u64) -> Result<Self, Error> {
        let lock = lock(path)?;
        let connection = Connection::open(path).map_err(failed(path, "open"))?;
        let mut this = Self { connection, path: path.to_owned(), ids: HashMap::new(), _lock: Some(lock) };
        this.recognise()?;
        this.configure(most_bytes).map_err(failed(path, "open"))?;
        this.migrate(MIGRATIONS)?;
        this.ids = this
            .read_series()
            .map_err(failed(path, "read"))?
            .into_iter()
            .map(|(id, key)| (key, id))
            .collect();
        Ok(this)
    }

    /// Opens the file to read it, while a recorder may write to it.
    ///
    /// # Errors
    /// When it is not there, or none.
    pub fn read(path: &Path) -> Result<Self, Error> {
        // Opened to write where that is possible: after a kill the journal has to be rolled back before anything can be read.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        std::fs::metadata(path).map_err(|source| Error::Open { path: path.to_owned(), source })?;
        let connection = Connection::open_with_flags(path, flags).map_err(failed(path, "open"))?;
        connection.busy_timeout(BUSY).map_err(failed(path, "open"))?;
        let this = Self { connection, path: path.to_owned(), ids: HashMap::new(), _lock: None };
        let version = this.recognise()?;
        if version == 0 {
            return Err(Error::Foreign { path: path.to_owned() });
        }
        Ok(this)
    }

    /// The version of its schema; 0 for a file that is still empty.
    fn recognise(&self) -> Result<usize, Error> {
        let path = || self.path.clone();
        let pragma = |name| {
            self.connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i32>(0)).map_err(
                |source| match source.sqlite_error_code() {
                    Some(ErrorCode::NotADatabase) => Error::Foreign { path: path() },
                    _ => Error::Sqlite { what: "read", path: path(), source },
                },
            )
        };
        let (application, version, pages) =
            (pragma("application_id")?, pragma("user_version")?, pragma("page_count")?);
        if application != APPLICATION_ID && (application != 0 || version != 0 || pages != 0) {
            return Err(Error::Foreign { path: path() });
        }
        let found = usize::try_from(version).unwrap_or(usize::MAX);
        if found > MIGRATIONS.len() {
            return Err(Error::Newer { path: path(), found, known: MIGRATIONS.len() });
        }
        Ok(found)
    }

    fn configure(&self, most_bytes: u64) -> rusqlite::Result<()> {
        let connection = &self.connection;
        connection.busy_timeout(BUSY)?;
        connection.pragma_update_and_check(None, "journal_mode", "PERSIST", |_| Ok(()))?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        let page: u32 = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
        let pages = i64::try_from((most_bytes / u64::from(page)).max(1)).unwrap_or(i64::MAX);
        connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))
    }

    pub(super) fn migrate(&mut self, migrations: &[&str]) -> Result<(), Error> {
        let found = self.recognise()?;
        let path = self.path.clone();
        let mut migrate = || {
            for (index, migration) in migrations.iter().enumerate().skip(found) {
                // The version is in the file's head and belongs to the transaction.
                let transaction = self.connection.transaction()?;
                transaction.execute_batch(migration)?;
                transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
                transaction.pragma_update(
                    None,
                    "user_version",
                    i64::try_from(index + 1).unwrap_or_default(),
                )?;
                transaction.commit()?;
            }
            Ok(())
        };
        migrate().map_err(failed(&path, "migrate"))
    }

    /// Stores a sample. It stands for the time since the one before it, or for `interval_s` where that is too long ago: then there is a gap between them.
    ///
    /// # Errors
    /// When it can't be written: nothing of it is stored then. See [`Error::full`].
    pub fn add(&mut self, sample: &Sample, interval_s: i64) -> Result<Added, Error> {
        let mut ids = std::mem::take(&mut self.ids);
        let added = self.add_with(sample, interval_s.max(1), &mut ids);
        // What a transaction that failed has given numbers to has none.
        if added.is_ok() {
            self.ids = ids;
        } else if let Ok(known) = self.read_series() {
            self.ids = known.into_iter().map(|(id, key)| (key, id)).collect();
        }
        added.map_err(failed(&self.path, "write to"))
    }

    fn add_with(
        &mut self,
        sample: &Sample,
        interval_s: i64,
        ids: &mut HashMap<Key, i64>,
    ) -> rusqlite::Result<Added> {
        let transaction =
            self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let at_s = sample.at_s;
        let next: Option<i64> = transaction
            .query_row(
                "SELECT min(at_s - max(for_s, CASE level WHEN 0 THEN 1 WHEN 1 THEN 900 ELSE 3600 END)) FROM span WHERE level IN (0, 1, 2) AND at_s >= ?1",
                [at_s],
                |row| row.get(0),
            )
            .optional()?
            .flatten();
        if next.is_some_and(|begin| begin < at_s) {
            return Ok(Added::Known);
        }
        let before: Option<i64> =
            transaction.query_row("SELECT max(at_s) FROM span WHERE at_s < ?1", [at_s], |row| row.get(0))?;
        let for_s = match before.map(|before| at_s - before) {
            // Two and a half: a sample that is late, or missing alone, is no gap.
            Some(since) if since <= interval_s.saturating_mul(5) / 2 => since,
            _ => interval_s,
        };
        transaction
            .prepare_cached("INSERT INTO span (level, at_s, for_s, samples) VALUES (0, ?1, ?2, 1)")?
            .execute(params![at_s, for_s])?;
        let mut values: BTreeMap<i64, i64> = BTreeMap::new();
        for (key, &milli) in sample.milli_gpus.iter().filter(|(_, milli)| **milli > 0) {
            let id = id_of(&transaction, key, ids)?;
            let value = values.entry(id).or_default();
            *value = value.saturating_add_unsigned(milli).min(MOST_MILLI_GPUS);
        }
        let mut insert = transaction.prepare_cached(
            "INSERT INTO point (level, at_s, series, milli_gpu_s, least, most, samples) VALUES (0, ?1, ?2, ?3, ?4, ?4, 1)",
        )?;
        for (id, milli) in values {
            insert.execute(params![at_s, id, milli.saturating_mul(for_s), milli])?;
        }
        drop(insert);
        transaction.commit()?;
        Ok(Added::Stored { for_s })
    }

    pub(super) fn read_series(&self) -> rusqlite::Result<Vec<(i64, Key)>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT id, what, pool, resource, model, serverless, namespace, label, user FROM series",
        )?;
        let rows = statement.query_map([], |row| {
            let what = match row.get::<_, i64>(1)? {
                0 => What::Capacity,
                1 => What::Allocated,
                2 => What::Waiting,
                3 => What::Used,
                _ => What::Stranded,
            };
            let pool = Pool {
                name: row.get(2)?,
                resource: row.get(3)?,
                model: row.get(4)?,
                serverless: row.get(5)?,
            };
            let owner = Owner { namespace: row.get(6)?, label: row.get(7)?, user: row.get(8)? };
            Ok((row.get(0)?, Key { what, pool, owner }))
        })?;
        rows.collect()
    }

    /// Forgets names that nothing is left of, so that others find room.
    pub(super) fn forget_names(&mut self) -> Result<(), Error> {
        let mut forget = || {
            self.connection.execute("DELETE FROM series WHERE id NOT IN (SELECT series FROM point)", [])?;
            self.ids = self.read_series()?.into_iter().map(|(id, key)| (key, id)).collect();
            Ok(())
        };
        forget().map_err(failed(&self.path, "clear up"))
    }

    /// How many series have a name in the file.
    pub(super) fn names(&self) -> usize {
        self.ids.len()
    }

    /// Notes something.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn set(&self, key: &str, value: &str) -> Result<(), Error> {
        let set = "INSERT INTO setting (key, value) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2";
        self.connection.execute(set, [key, value]).map(drop).map_err(failed(&self.path, "write to"))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The number of a series, a new one where it has none yet.
fn id_of(transaction: &Transaction<'_>, key: &Key, ids: &mut HashMap<Key, i64>) -> rusqlite::Result<i64> {
    if let Some(id) = ids.get(key) {
        return Ok(*id);
    }
    let mut key = bounded(key);
    // Pools are few and stay apart; it is names of owners that come and go.
    if ids.len() >= MOST_SERIES && !key.what.is_nobodys() {
        key.owner = Owner { namespace: OTHERS.to_owned(), ..Owner::default() };
    }
    if let Some(id) = ids.get(&key) {
        return Ok(*id);
    }
    let Key { what, pool, owner } = &key;
    transaction
        .prepare_cached(
            "INSERT INTO series (what, pool, resource, model, serverless, namespace, label, user) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            *what as i64,
            pool.name,
            pool.resource,
            pool.model,
            pool.serverless,
            owner.namespace,
            owner.label,
            owner.user
        ])?;
    let id = transaction.last_insert_rowid();
    ids.insert(key, id);
    Ok(id)
}

fn bounded(key: &Key) -> Key {
    let cut = |text: &str| match text.char_indices().nth(LONGEST_NAME) {
        Some((end, _)) => text[..end].to_owned(),
        None => text.to_owned(),
    };
    let Key { what, pool, owner } = key;
    Key {
        what: *what,
        pool: Pool {
            name: cut(&pool.name),
            resource: cut(&pool.resource),
            model: cut(&pool.model),
            serverless: pool.serverless,
        },
        owner: Owner { namespace: cut(&owner.namespace), label: cut(&owner.label), user: cut(&owner.user) },
    }
}

pub(super) fn failed(path: &Path, what: &'static str) -> impl FnOnce(rusqlite::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Sqlite { what, path, source }
}

/// Beside the file and not on it: `SQLite` has locks of its own there, which on some file systems are the same ones.
fn lock(path: &Path) -> Result<File, Error> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    let open = |source| Error::Open { path: path.to_owned(), source };
    let file =
        File::options().read(true).write(true).create(true).truncate(false).open(beside).map_err(open)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = (&file).take(200).read_to_string(&mut holder);
            let holder = if holder.is_empty() { "it does not say which".to_owned() } else { holder };
            return Err(Error::Held { path: path.to_owned(), holder });
        }
        Err(TryLockError::Error(source)) => return Err(open(source)),
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let told = format!("process {} on {}", std::process::id(), host.trim());
    // Only for the message above: a disk that is full must not keep the recorder from starting.
    let _ = file.set_len(0).and_then(|()| (&file).rewind()).and_then(|()| (&file).write_all(told.as_bytes()));
    Ok(file)
}
