//! How full machines can get by each way of packing: pods come one by one, none ever leaves, and those that fit nowhere are turned away. The experiment of FGD (ATC'23).

use serde::Serialize;

use super::{
    dice::{Dice, Stream},
    machines::Machines,
    tally::float,
};
use crate::{
    job::Request,
    output::{Column, Table},
    policy::Packing,
    pool::Pool,
};

/// How full machines got.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Filling {
    /// The way of packing.
    pub packing: Packing,
    /// Dedicated GPUs.
    pub dedicated_gpus: u64,
    /// How much GPU came, as a share of what there is.
    pub asked_share: f64,
    /// Share of the GPUs that pods got, on average over the seeds.
    pub allocated_share: f64,
    /// Its standard error; nothing of one seed.
    pub allocated_share_error: Option<f64>,
    /// Each seed by itself.
    pub seeds: Vec<Filled>,
}

/// How full machines got with one seed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Filled {
    /// By this pods were shuffled and drawn, and equal machines chosen.
    pub seed: u64,
    /// Pods that came.
    pub pods: u64,
    /// Pods that fit nowhere.
    pub turned_away: u64,
    /// Share of the GPUs that pods got.
    pub allocated_share: f64,
    /// Share of the GPUs that are free, but not usable by usual pods.
    pub fragmented_share: f64,
}

/// Fills `pool` with `requests`, shuffled and then drawn again and again, until they ask for `inflate` times its GPUs; with each of so many seeds from `seed` on.
pub fn fill(
    requests: &[Request],
    pool: &Pool,
    packing: Packing,
    inflate: f64,
    seed: u64,
    seeds: u64,
) -> Filling {
    let capacity_milli = pool.gpu_count() * 1000;
    let mut asked = 0;
    let filled: Vec<Filled> = (seed..seed.saturating_add(seeds))
        .map(|seed| {
            let order = drawn(requests, capacity_milli, inflate, seed);
            asked = order.iter().map(|index| requests[*index].total_milli()).sum();
            one(requests, &order, pool, packing, seed)
        })
        .collect();
    let count = float(filled.len() as u64).max(1.0);
    let mean = filled.iter().map(|filled| filled.allocated_share).sum::<f64>() / count;
    let squares = filled.iter().map(|filled| (filled.allocated_share - mean).powi(2)).sum::<f64>();
    Filling {
        packing,
        dedicated_gpus: pool.gpu_count(),
        asked_share: share(asked, capacity_milli),
        allocated_share: mean,
        allocated_share_error: (filled.len() > 1).then(|| (squares / (count - 1.0) / count).sqrt()),
        seeds: filled,
    }
}

fn one(requests: &[Request], order: &[usize], pool: &Pool, packing: Packing, seed: u64) -> Filled {
    let mut machines = Machines::new(pool, packing, Dice::new(seed, Stream::Ties));
    // What usually comes is known beforehand, as in the paper.
    let kinds: Vec<u32> = requests.iter().map(|request| machines.kind(request)).collect();
    machines.know(&kinds);
    let (mut allocated_milli, mut turned_away) = (0, 0);
    for index in order {
        if machines.place(kinds[*index]).is_some() {
            allocated_milli += requests[*index].total_milli();
        } else {
            turned_away += 1;
        }
    }
    let capacity = float(machines.capacity_milli).max(1.0);
    Filled {
        seed,
        pods: order.len() as u64,
        turned_away,
        allocated_share: share(allocated_milli, machines.capacity_milli),
        fragmented_share: machines.fragmented_milli() / capacity,
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { float(part) / float(whole) }
}

/// Which requests come, one after the other.
fn drawn(requests: &[Request], capacity_milli: u64, inflate: f64, seed: u64) -> Vec<usize> {
    let mut dice = Dice::new(seed, Stream::Shuffle);
    let mut order: Vec<usize> = (0..requests.len()).collect();
    dice.shuffle(&mut order);
    let target = float(capacity_milli) * inflate;
    let mut asked: u64 = requests.iter().map(Request::total_milli).sum();
    while float(asked) > target
        && let Some(index) = order.pop()
    {
        asked -= requests[index].total_milli();
    }
    while asked > 0 {
        #[expect(clippy::cast_possible_truncation, reason = "below a length")]
        let index = dice.below(requests.len() as u64) as usize;
        asked += requests[index].total_milli();
        if float(asked) > target {
            break;
        }
        order.push(index);
    }
    order
}

impl Filling {
    /// As tables: the mean, then each seed.
    pub fn tables(&self) -> Vec<Table> {
        let percent = |share: f64| format!("{:.2} %", share * 100.0);
        vec![
            Table {
                title: format!(
                    "Filled with {} of {} GPUs",
                    percent(self.asked_share).replace(".00", ""),
                    self.dedicated_gpus
                ),
                columns: vec![
                    Column::number("ALLOCATED"),
                    Column::number("± STD ERROR"),
                    Column::number("SEEDS"),
                ],
                rows: vec![vec![
                    percent(self.allocated_share),
                    self.allocated_share_error.map_or_else(|| "-".to_owned(), percent),
                    self.seeds.len().to_string(),
                ]],
            },
            Table {
                title: "By seed".to_owned(),
                columns: vec![
                    Column::number("SEED"),
                    Column::number("ALLOCATED"),
                    Column::number("FRAGMENTED"),
                    Column::number("PODS"),
                    Column::number("TURNED AWAY"),
                ],
                rows: self
                    .seeds
                    .iter()
                    .map(|filled| {
                        vec![
                            filled.seed.to_string(),
                            percent(filled.allocated_share),
                            percent(filled.fragmented_share),
                            filled.pods.to_string(),
                            filled.turned_away.to_string(),
                        ]
                    })
                    .collect(),
            },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::fill;
    use crate::{
        job::{Request, WHOLE_GPU},
        policy::Packing,
        pool::Pool,
    };

    const ALL: [Packing; 7] = [
        Packing::FirstFit,
        Packing::BestFit,
        Packing::DotProduct,
        Packing::Packing,
        Packing::Clustering,
        Packing::Fgd,
        Packing::Random,
    ];

    fn requests() -> Vec<Request> {
        let share = |gpu_milli| Request { gpu_milli, cpu_milli: 4000, ..Request::gpus(1) };
        let whole = |gpus| Request { cpu_milli: 8000, ..Request::gpus(gpus) };
        let mut requests = Vec::new();
        for _ in 0..10 {
            requests.extend([
                share(810),
                share(470),
                share(320),
                share(650),
                whole(1),
                whole(1),
                whole(2),
                whole(8),
            ]);
        }
        requests
    }

    #[test]
    fn machines_are_filled_and_none_twice() {
        let pool = Pool::of_gpus(24, 8);
        for packing in ALL {
            let filling = fill(&requests(), &pool, packing, 1.3, 42, 3);
            assert_eq!(filling, fill(&requests(), &pool, packing, 1.3, 42, 3), "{packing:?}");
            assert!(filling.allocated_share > 0.7 && filling.allocated_share <= 1.0, "{filling:?}");
            assert!(filling.asked_share > 1.2 && filling.asked_share <= 1.3, "{filling:?}");
        }
    }

    #[test]
    fn fragmentation_gradient_descent_beats_chance() {
        let pool = Pool::of_gpus(24, 8);
        let allocated = |packing| fill(&requests(), &pool, packing, 1.3, 0, 5).allocated_share;
        assert!(allocated(Packing::Fgd) > allocated(Packing::Random));
    }

    #[test]
    fn what_fits_exactly_is_placed_wholly() {
        // Two halves and a whole GPU on a machine of two: chance may split the halves, the others don't.
        let half = Request { gpu_milli: WHOLE_GPU / 2, ..Request::gpus(1) };
        let requests = [half.clone(), half, Request::gpus(1)];
        for packing in ALL.into_iter().filter(|packing| *packing != Packing::Random) {
            let filling = fill(&requests, &Pool::of_gpus(1, 2), packing, 1.0, 0, 4);
            assert!((filling.allocated_share - 1.0).abs() < 1e-9, "{packing:?}: {filling:?}");
        }
    }
}
