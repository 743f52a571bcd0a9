//! A price file, and the rates that are chosen from it.

use jiff::civil::{Date, date};
use kubectl_spillway::price::{Kind, Prices, Rates};

const TODAY: Date = date(2026, 11, 22);

/// More than any message has to say.
const MESSAGE: usize = 20_000;

/// Reads it, and compares each price with each other one.
pub fn run(bytes: &[u8]) {
    let prices = match Prices::parse("prices.yaml", bytes, TODAY) {
        Ok(prices) => prices,
        Err(error) => {
            let message = error.to_string();
            assert!(message.starts_with("prices.yaml") && message.len() < MESSAGE, "{message}");
            return;
        }
    };
    for (name, price) in &prices.prices {
        assert_eq!(name, &price.name);
        let amounts = [price.machine_per_hour, price.gpu_per_hour, price.vcpu_per_hour, price.gib_per_hour];
        assert!(amounts.iter().any(Option::is_some), "{price:?}");
        for amount in amounts.into_iter().flatten() {
            assert!(amount > 0.0 && amount.is_finite(), "{price:?}");
        }
        assert!(price.billed_s >= 0.0 && price.billed_s.is_finite() && price.age_days >= 0, "{price:?}");
        assert_eq!(price.stale, price.age_days > 180);
    }
    let few = || prices.prices.values().take(8);
    for dedicated in few().filter(|price| price.kind == Kind::Dedicated) {
        for serverless in few().filter(|price| price.kind == Kind::Serverless) {
            let (Some(owned), Some(rented)) = (dedicated.gpu_per_hour, serverless.gpu_per_hour) else {
                continue;
            };
            let Some((rented, rate)) = prices.convert(rented, serverless.currency, dedicated.currency) else {
                assert_ne!(serverless.currency, dedicated.currency);
                continue;
            };
            assert_eq!(rate.is_some(), serverless.currency != dedicated.currency);
            if let Ok(rates) = Rates::new(dedicated.currency, owned, rented) {
                assert!(rates.ratio() > 0.0 && rates.ratio().is_finite(), "{rates:?}");
                assert_eq!(rates.ratio() <= 1.0, !rates.warnings.is_empty(), "{rates:?}");
            }
        }
    }
    for table in prices.tables() {
        assert!(table.rows.iter().all(|row| row.len() == table.columns.len()));
    }
    let json = serde_json::to_string(&prices).expect("prices are JSON");
    assert!(json.starts_with('{'));
}
