//! What can be bought: every number of GPUs that machines add up to, and the least that it costs.

use std::sync::Arc;

use serde::Serialize;

use super::Error;

/// A machine that can be bought.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shape {
    /// GPUs of each.
    pub gpus: u32,
    /// What each of its GPUs costs per hour, where not as much as any.
    pub per_gpu_hour: Option<f64>,
    /// The model of its GPUs; empty where nobody asks.
    pub model: Arc<str>,
}

impl Default for Shape {
    fn default() -> Self {
        Self { gpus: 1, per_gpu_hour: None, model: Arc::from("") }
    }
}

/// So many machines of a shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Machines {
    /// How many.
    pub count: u32,
    /// GPUs of each.
    pub gpus_each: u32,
    /// Their model; empty where it wasn't said.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub model: Arc<str>,
}

/// No machine has more.
const MOST_GPUS: u32 = 1024;

/// Sizes that can be bought, ascending, each with its least price; nothing first. Sizes that cost no less than a larger one are left out.
///
/// For several shapes the prices are those of the unbounded knapsack's table: the cheapest way to n GPUs is the cheapest over shapes s of the cheapest way to n − s and one s. It is exact.
#[derive(Debug, Clone, PartialEq)]
pub struct Menu {
    sizes: Vec<u32>,
    per_hour: Vec<f64>,
    /// The shape that was added last, for each size up to the largest; none for nothing and for what can't be bought.
    last: Vec<Option<usize>>,
    shapes: Vec<Shape>,
    per_gpu_hour: f64,
}

impl Menu {
    pub(super) fn new(
        shapes: &[Shape],
        dedicated_per_gpu_hour: f64,
        availability: f64,
        most_demanded: u32,
    ) -> Result<Self, Error> {
        if let Some(shape) = shapes.iter().find(|shape| shape.gpus == 0 || shape.gpus > MOST_GPUS) {
            return Err(Error::Machine(shape.gpus));
        }
        let single = [Shape::default()];
        let shapes = if shapes.is_empty() { &single[..] } else { shapes };
        let price = |shape: &Shape| {
            f64::from(shape.gpus)
                * shape.per_gpu_hour.map_or(dedicated_per_gpu_hour, |price| price / availability)
        };
        let largest = shapes.iter().map(|shape| shape.gpus).max().unwrap_or(1);
        let most = (most_demanded + largest) as usize;
        let (mut costs, mut last) = (vec![f64::INFINITY; most], vec![None; most]);
        costs[0] = 0.0;
        for gpus in 1..most {
            for (index, shape) in shapes.iter().enumerate() {
                let Some(before) =
                    gpus.checked_sub(shape.gpus as usize).filter(|before| costs[*before].is_finite())
                else {
                    continue;
                };
                // Machines of one shape cost a multiple, without the error of a sum.
                let cost = if shapes.len() == 1 {
                    price(shape) * (gpus as f64 / f64::from(shape.gpus))
                } else {
                    costs[before] + price(shape)
                };
                if cost < costs[gpus] {
                    (costs[gpus], last[gpus]) = (cost, Some(index));
                }
            }
        }
        let (mut sizes, mut per_hour) = (Vec::new(), Vec::new());
        let mut cheapest_above = f64::INFINITY;
        for gpus in (0..most).rev() {
            if costs[gpus].is_finite() && (costs[gpus] < cheapest_above || gpus == 0) {
                sizes.push(gpus as u32);
                per_hour.push(costs[gpus]);
                cheapest_above = costs[gpus];
            }
        }
        sizes.reverse();
        per_hour.reverse();
        Ok(Self { sizes, per_hour, last, shapes: shapes.to_vec(), per_gpu_hour: dedicated_per_gpu_hour })
    }

    pub(super) fn len(&self) -> usize {
        self.sizes.len()
    }

    pub(super) fn gpus(&self, index: usize) -> u32 {
        self.sizes[index]
    }

    pub(super) fn per_hour(&self, index: usize) -> f64 {
        self.per_hour[index]
    }

    /// Whether cost is convex over the menu, so that its least can be searched by halving.
    pub(super) fn convex(&self) -> bool {
        self.shapes.len() == 1
    }

    /// The place of the least of `cost`, as [`least`] gives it.
    pub(super) fn least(&self, cost: impl Fn(usize) -> f64) -> usize {
        least(self.len(), self.convex(), cost)
    }

    /// The first size of at least so many GPUs.
    pub(super) fn enough(&self, gpus: u32) -> usize {
        self.sizes.partition_point(|size| *size < gpus).min(self.len() - 1)
    }

    /// What so many GPUs cost per hour: by the menu where it has them, else by the GPU.
    pub(super) fn price_of(&self, gpus: u32) -> f64 {
        match self.sizes.binary_search(&gpus) {
            Ok(index) => self.per_hour[index],
            Err(_) => f64::from(gpus) * self.cheapest_per_gpu_hour(),
        }
    }

    pub(super) fn cheapest_per_gpu_hour(&self) -> f64 {
        if self.len() < 2 {
            return self.per_gpu_hour;
        }
        (1..self.len())
            .map(|index| self.per_hour[index] / f64::from(self.sizes[index]))
            .fold(f64::INFINITY, f64::min)
    }

    /// GPUs of the smallest machine.
    pub(super) fn unit_gpus(&self) -> u32 {
        self.shapes.iter().map(|shape| shape.gpus).min().unwrap_or(1)
    }

    /// The machines that a size is made of, the largest first.
    pub(super) fn machines(&self, index: usize) -> Vec<Machines> {
        let mut counts = vec![0; self.shapes.len()];
        let mut gpus = self.sizes[index];
        while let Some(shape) = self.last[gpus as usize] {
            counts[shape] += 1;
            gpus -= self.shapes[shape].gpus;
        }
        let mut machines: Vec<Machines> = self
            .shapes
            .iter()
            .zip(counts)
            .filter(|(_, count)| *count > 0)
            .map(|(shape, count)| Machines { count, gpus_each: shape.gpus, model: shape.model.clone() })
            .collect();
        machines.sort_by_key(|machines| std::cmp::Reverse(machines.gpus_each));
        machines
    }
}

/// The place of the least of `cost` over `count` places, the first where several are as low but for rounding; found by halving where it is `convex`.
pub(super) fn least(count: usize, convex: bool, cost: impl Fn(usize) -> f64) -> usize {
    let worse = |one: f64, than: f64| one >= than * (1.0 - 1e-12);
    if convex {
        let (mut low, mut high) = (0, count - 1);
        while low < high {
            let middle = usize::midpoint(low, high);
            if worse(cost(middle + 1), cost(middle)) { high = middle } else { low = middle + 1 }
        }
        return low;
    }
    let (mut best, mut lowest) = (0, f64::INFINITY);
    for index in 0..count {
        let here = cost(index);
        if !worse(here, lowest) {
            (best, lowest) = (index, here);
        }
    }
    best
}
