//! What is asked: prices, machines, how sure the answer shall be; and what can't be answered.

use serde::Serialize;

use super::Shape;

/// What can't be answered.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A price that is none.
    #[error("the {what} price is {value}; a number from 0 up was expected")]
    Price {
        /// Which.
        what: &'static str,
        /// What was given.
        value: f64,
    },
    /// Both cost nothing.
    #[error("dedicated and serverless GPUs both cost nothing: any number is right")]
    Free,
    /// A share that is none.
    #[error("the availability is {0}; a share above 0 and up to 1 was expected, such as 0.98")]
    Availability(f64),
    /// A machine that has no GPUs.
    #[error("a machine of {0} GPUs can't be bought; from 1 to 1024 were expected")]
    Machine(u32),
    /// A time that is none.
    #[error("the {what} is {value} s; a time above 0 was expected")]
    Time {
        /// Which.
        what: &'static str,
        /// What was given.
        value: f64,
    },
    /// All that the trace tells of is taken for a hole, or it tells of no time.
    #[error("the trace tells of no time at all: every row has the same time")]
    NoTime,
}

/// What to do with stretches that look like missing data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Holes {
    /// Leave them out: nobody knows what was demanded then.
    #[default]
    Drop,
    /// Take them for time without demand.
    Keep,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The currency of all prices.
    pub currency: String,
    /// What a dedicated GPU costs per hour, used or not.
    pub dedicated_per_gpu_hour: f64,
    /// What a serverless GPU costs per hour.
    pub serverless_per_gpu_hour: f64,
    /// The machines that can be bought.
    pub shapes: Vec<Shape>,
    /// How many GPUs are owned today.
    pub owned_gpus: Option<u32>,
    /// How much of the time a dedicated machine works.
    pub availability: f64,
    /// How long a serverless GPU is paid for before it works.
    pub cold_start_s: f64,
    /// For how long a serverless GPU is had at a time.
    pub burst_s: Option<f64>,
    /// What to do with holes.
    pub holes: Holes,
    /// How long the blocks of the bootstrap are.
    pub block_s: f64,
    /// How often it is drawn.
    pub resamples: u32,
    /// What it is drawn with.
    pub seed: u64,
    /// What is demanded.
    pub meaning: String,
    /// What is known to be doubtful of prices and trace.
    pub notes: Vec<String>,
}

impl Default for Question {
    fn default() -> Self {
        Self {
            currency: String::new(),
            dedicated_per_gpu_hour: 1.0,
            serverless_per_gpu_hour: 2.0,
            shapes: vec![Shape::default()],
            owned_gpus: None,
            availability: 1.0,
            cold_start_s: 0.0,
            burst_s: None,
            holes: Holes::default(),
            block_s: 7.0 * 86_400.0,
            resamples: 1000,
            seed: 1,
            meaning: "GPUs demanded".to_owned(),
            notes: Vec::new(),
        }
    }
}

/// What a GPU costs per hour.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Prices {
    /// As given.
    pub dedicated_per_gpu_hour: f64,
    /// As given.
    pub serverless_per_gpu_hour: f64,
    /// Per hour in which the GPU works: `c_d / availability`.
    pub effective_dedicated_per_gpu_hour: f64,
    /// Per hour of work, with the cold start that is paid for: `c_s·(1 + s/L)`.
    pub effective_serverless_per_gpu_hour: f64,
    /// Effective serverless price over effective dedicated price: r. None where dedicated GPUs cost nothing.
    pub ratio: Option<f64>,
}

impl Prices {
    pub(super) fn of(question: &Question) -> Result<Self, Error> {
        let (dedicated, serverless) = (question.dedicated_per_gpu_hour, question.serverless_per_gpu_hour);
        let price = |what, value: f64| {
            if value.is_finite() && value >= 0.0 { Ok(()) } else { Err(Error::Price { what, value }) }
        };
        price("dedicated", dedicated)?;
        price("serverless", serverless)?;
        for shape in &question.shapes {
            price("machine's", shape.per_gpu_hour.unwrap_or(0.0))?;
        }
        if dedicated == 0.0 && serverless == 0.0 {
            return Err(Error::Free);
        }
        if !(question.availability > 0.0 && question.availability <= 1.0) {
            return Err(Error::Availability(question.availability));
        }
        if !(question.cold_start_s.is_finite() && question.cold_start_s >= 0.0) {
            return Err(Error::Time { what: "cold start", value: question.cold_start_s });
        }
        let positive = |what, value: f64| {
            if value.is_finite() && value > 0.0 { Ok(()) } else { Err(Error::Time { what, value }) }
        };
        positive("length of the bootstrap's blocks", question.block_s)?;
        let overhead = match question.burst_s {
            Some(burst_s) => {
                positive("length of a burst", burst_s)?;
                question.cold_start_s / burst_s
            }
            None => 0.0,
        };
        let effective_dedicated = dedicated / question.availability;
        let effective_serverless = serverless * (1.0 + overhead);
        Ok(Self {
            dedicated_per_gpu_hour: dedicated,
            serverless_per_gpu_hour: serverless,
            effective_dedicated_per_gpu_hour: effective_dedicated,
            effective_serverless_per_gpu_hour: effective_serverless,
            ratio: (effective_dedicated > 0.0).then(|| effective_serverless / effective_dedicated),
        })
    }
}
