//! A described pool: dedicated machines with their shapes, and what may be rented beside them. From a file (YAML or JSON), from flags, or built by hand. The bytes of a file are hostile.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, Visitor},
};

/// No described pool is larger.
const SIZE_LIMIT: u64 = 16 * 1024 * 1024;

/// More machines than this is a slip of the hand: 100 times the largest Kubernetes cluster.
const MACHINE_LIMIT: u64 = 500_000;

/// More GPUs in one machine than this is a slip of the hand.
const GPU_LIMIT: u32 = 128;

/// Dedicated machines, and the serverless ones beside them. They are never summed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Pool {
    /// Dedicated machines, equal ones together. None at all means that everything is rented.
    pub machines: Vec<Machines>,
    /// What may be rented.
    #[serde(default)]
    pub serverless: Serverless,
}

/// Machines that are equal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Machines {
    /// What they are called.
    #[serde(default)]
    pub name: Arc<str>,
    /// How many there are.
    #[serde(default = "one")]
    pub count: u32,
    /// The model of their GPUs, as jobs ask for it; empty where any will do that a job asks for.
    #[serde(default)]
    pub model: Arc<str>,
    /// GPUs of each machine.
    pub gpus: u32,
    /// CPU of each machine in thousandths of a core, such as `"64"` or `"64000m"`; not looked at where it isn't given.
    #[serde(
        default,
        rename = "cpu",
        deserialize_with = "cpu",
        skip_serializing_if = "Option::is_none",
        serialize_with = "cpu_out"
    )]
    pub cpu_milli: Option<u64>,
    /// Memory of each machine in MiB, such as `256Gi`; not looked at where it isn't given.
    #[serde(
        default,
        rename = "memory",
        deserialize_with = "memory",
        skip_serializing_if = "Option::is_none",
        serialize_with = "memory_out"
    )]
    pub memory_mib: Option<u64>,
    /// What each machine costs per hour, where it isn't the number of its GPUs times the price of a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_per_hour: Option<f64>,
}

/// What may be rented.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Serverless {
    /// The provider's quota: the most GPUs at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_gpus: Option<u32>,
    /// The most GPUs of one pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_gpus_per_pod: Option<u32>,
    /// The models that can be had; any where it is empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<Arc<str>>,
}

fn one() -> u32 {
    1
}

/// Why there is no pool.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file can't be read.
    #[error("can't read the pool from {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is too large to be a pool.
    #[error("can't read the pool from {}: it is larger than {} MiB; is it a trace?", .0.display(), SIZE_LIMIT >> 20)]
    Large(PathBuf),
    /// It says something that isn't understood.
    #[error("the pool: {0}")]
    Parse(String),
    /// Machines that can't be.
    #[error("the pool: machines {name}: {what}")]
    Machines {
        /// Their name, or their place in the list.
        name: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// More machines than can be meant.
    #[error("the pool has {0} machines: at most {MACHINE_LIMIT} can be simulated")]
    Many(u64),
    /// The flags don't go together.
    #[error("{0}")]
    Flags(&'static str),
}

/// A pool on the command line.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Pool")]
#[group(skip)]
pub struct Args {
    /// The pool's machines, from a file (YAML or JSON).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["gpus", "gpus_per_machine"])]
    pub pool: Option<PathBuf>,
    /// So many dedicated GPUs instead of a file, in machines of `--gpus-per-machine`.
    #[arg(long, value_name = "GPUS")]
    pub gpus: Option<u32>,
    /// GPUs of each machine.
    #[arg(long, value_name = "GPUS", requires = "gpus")]
    pub gpus_per_machine: Option<u32>,
}

impl Args {
    /// The pool that they describe; nothing where they say nothing.
    pub fn pool(&self) -> Result<Option<Pool>, Error> {
        match (&self.pool, self.gpus) {
            (Some(path), _) => Pool::open(path).map(Some),
            (None, Some(gpus)) => {
                let each = self.gpus_per_machine.unwrap_or(1);
                if each == 0 {
                    return Err(Error::Flags("--gpus-per-machine is 0: give at least 1"));
                }
                if !gpus.is_multiple_of(each) {
                    return Err(Error::Flags(
                        "--gpus is not a multiple of --gpus-per-machine: no machine is bought in part",
                    ));
                }
                let pool = Pool::of_gpus(gpus / each, each);
                pool.check()?;
                Ok(Some(pool))
            }
            (None, None) => Ok(None),
        }
    }
}

impl Pool {
    /// So many machines with so many GPUs each, where nothing else is scarce and any model that a job asks for is there.
    pub fn of_gpus(machines: u32, gpus_each: u32) -> Self {
        let machines = Machines {
            name: Arc::from("machine"),
            count: machines,
            model: Arc::from(""),
            gpus: gpus_each,
            cpu_milli: None,
            memory_mib: None,
            price_per_hour: None,
        };
        Self { machines: vec![machines], serverless: Serverless::default() }
    }

    /// Reads it from a file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let read = |source| Error::Read { path: path.to_owned(), source };
        let file = fs::File::open(path).map_err(read)?;
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, SIZE_LIMIT + 1), &mut bytes).map_err(read)?;
        if bytes.len() as u64 > SIZE_LIMIT {
            return Err(Error::Large(path.to_owned()));
        }
        Self::parse(&bytes)
    }

    /// Reads it from the bytes of a file, YAML or JSON.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let text = std::str::from_utf8(bytes).map_err(|_| Error::Parse("it is not a text".to_owned()))?;
        let mut pool: Self =
            serde_saphyr::from_str(text.trim_start_matches('\u{feff}')).map_err(|error| {
                // The parser adds an excerpt of the file below its message.
                let message = error.to_string();
                Error::Parse(
                    message.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned(),
                )
            })?;
        for (index, machines) in pool.machines.iter_mut().enumerate() {
            if machines.name.is_empty() {
                let model = if machines.model.is_empty() { "machine" } else { &*machines.model };
                machines.name = Arc::from(format!("{model}-{}", index + 1));
            }
        }
        pool.check()?;
        Ok(pool)
    }

    /// Checks what the types allow and no pool can be.
    pub fn check(&self) -> Result<(), Error> {
        for machines in &self.machines {
            let wrong = |what: String| Err(Error::Machines { name: machines.name.to_string(), what });
            if machines.gpus > GPU_LIMIT {
                return wrong(format!("{} GPUs each: at most {GPU_LIMIT} can be simulated", machines.gpus));
            }
            if let Some(price) = machines.price_per_hour
                && !(price.is_finite() && price >= 0.0)
            {
                return wrong(format!("pricePerHour is {price}: give a number of at least 0"));
            }
        }
        let machines = self.machine_count();
        if machines > MACHINE_LIMIT { Err(Error::Many(machines)) } else { Ok(()) }
    }

    /// How many dedicated machines there are.
    pub fn machine_count(&self) -> u64 {
        self.machines.iter().map(|machines| u64::from(machines.count)).sum()
    }

    /// How many dedicated GPUs there are.
    pub fn gpu_count(&self) -> u64 {
        self.machines.iter().map(|machines| u64::from(machines.count) * u64::from(machines.gpus)).sum()
    }
}

/// A Kubernetes quantity in `1 / .0` units, written as a number or as a text.
struct Quantity(u16);

impl Visitor<'_> for Quantity {
    type Value = i64;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a quantity such as 64, 64000m or 256Gi")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<i64, E> {
        spillway_quantity::parse(text.trim(), self.0)
            .filter(|amount| *amount >= 0)
            .ok_or_else(|| E::custom(format!("{text:?} is no quantity such as 64, 64000m or 256Gi")))
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<i64, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<i64, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<i64, E> {
        self.visit_str(&number.to_string())
    }
}

/// Larger amounts are a slip of the hand.
const CPU_LIMIT_MILLI: i64 = 1_000_000_000;
const MEMORY_LIMIT_BYTES: i64 = 1 << 60;

fn amount<'de, D: Deserializer<'de>>(input: D, parts: u16, limit: i64) -> Result<i64, D::Error> {
    let amount = input.deserialize_any(Quantity(parts))?;
    if amount > limit { Err(D::Error::custom("more than any machine has")) } else { Ok(amount) }
}

fn cpu<'de, D: Deserializer<'de>>(input: D) -> Result<Option<u64>, D::Error> {
    Ok(amount(input, 1000, CPU_LIMIT_MILLI)?.try_into().ok())
}

fn memory<'de, D: Deserializer<'de>>(input: D) -> Result<Option<u64>, D::Error> {
    let bytes = amount(input, 1, MEMORY_LIMIT_BYTES)?;
    if (1..1 << 20).contains(&bytes) {
        return Err(D::Error::custom("less than 1 MiB: write the unit, e.g. 256Gi"));
    }
    Ok((bytes >> 20).try_into().ok())
}

#[expect(clippy::ref_option, reason = "serde's signature")]
fn cpu_out<S: serde::Serializer>(milli: &Option<u64>, output: S) -> Result<S::Ok, S::Error> {
    output.serialize_str(&format!("{}m", milli.unwrap_or_default()))
}

#[expect(clippy::ref_option, reason = "serde's signature")]
fn memory_out<S: serde::Serializer>(mib: &Option<u64>, output: S) -> Result<S::Ok, S::Error> {
    output.serialize_str(&format!("{}Mi", mib.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::{Args, Pool};

    #[test]
    fn a_pool_is_read_with_kubernetes_quantities() {
        let text = "machines:\n- {name: a100, count: 12, model: A100, gpus: 8, cpu: 96, memory: 768Gi, pricePerHour: 12.5}\n- {gpus: 4, cpu: 64000m, memory: 256Gi}\nserverless: {maxGpus: 100}\n";
        let pool = Pool::parse(text.as_bytes()).unwrap();
        assert_eq!((pool.machine_count(), pool.gpu_count()), (13, 100));
        assert_eq!(pool.machines[0].cpu_milli, Some(96_000));
        assert_eq!(pool.machines[1].cpu_milli, Some(64_000));
        assert_eq!(pool.machines[1].memory_mib, Some(256 * 1024));
        assert_eq!(&*pool.machines[1].name, "machine-2");
        let again = serde_json::to_string(&pool).unwrap();
        assert_eq!(Pool::parse(again.as_bytes()).unwrap(), pool, "what is written is read again");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (text, words) in [
            ("machines:\n- {gpus: 8, cpus: 96}\n", "cpus"),
            ("machines:\n- {gpus: -8}\n", "line 2"),
            ("machines:\n- {gpus: 8, memory: 768}\n", "unit"),
            ("machines:\n- {gpus: 8, cpu: lots}\n", "lots"),
            ("machines:\n- {gpus: 8, cpu: -1}\n", "no quantity"),
            ("machines:\n- {gpus: 8, cpu: .inf}\n", "non-finite"),
            ("machines:\n- {gpus: 8, memory: 12Ei}\n", "more than any machine has"),
            ("machines:\n- {gpus: 8, pricePerHour: -1}\n", "pricePerHour"),
            ("machines:\n- {name: x, gpus: 8, pricePerHour: .nan}\n", "machines x"),
            ("machines:\n- {gpus: 8, count: 4000000000}\n", "4000000000 machines"),
            ("machines:\n- {gpus: 4000000000}\n", "GPUs each"),
            ("", "end of input"),
            ("\u{feff}[", "pool"),
        ] {
            let error = Pool::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        }
        assert!(Pool::parse(&[0xff, 0xfe]).is_err());
    }

    #[test]
    fn a_pool_of_equal_machines_needs_no_file() {
        let flags = |gpus, gpus_per_machine| Args { pool: None, gpus, gpus_per_machine }.pool();
        assert_eq!(flags(None, None).unwrap(), None);
        assert_eq!(flags(Some(108), None).unwrap().unwrap().machine_count(), 108);
        assert_eq!(flags(Some(108), Some(4)).unwrap().unwrap().machine_count(), 27);
        assert!(flags(Some(108), Some(8)).is_err());
        assert!(flags(Some(108), Some(0)).is_err());
        assert_eq!(flags(Some(0), None).unwrap().unwrap().gpu_count(), 0, "everything rented");
    }
}
