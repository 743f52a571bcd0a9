//! Asking an API server that may be away: no answer is waited for without end, and where none comes an older one serves again.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use crate::identity::chain;

/// So long an answer is waited for, if there is no older one.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same if there is: at first, and after an answer that never came.
const PATIENCE_WITH_OLDER: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(1));

/// How it went with the answers so far.
#[derive(Default)]
pub(super) struct Asking {
    /// The last one did not come in time.
    silent: AtomicBool,
}

impl Asking {
    /// What the call is answered; `older` where there is no answer. That something is not there, or not for us, is one; that the API
    /// server is overloaded, broken or not reached is none.
    pub(super) async fn ask<T>(
        &self,
        older: Option<T>,
        call: impl Future<Output = kube::Result<T>>,
    ) -> kube::Result<T> {
        let patience = match &older {
            None => PATIENCE,
            Some(_) if self.silent.load(Ordering::Relaxed) => PATIENCE_WITH_OLDER.1,
            Some(_) => PATIENCE_WITH_OLDER.0,
        };
        let heard = tokio::time::timeout(patience, call).await;
        self.silent.store(heard.is_err(), Ordering::Relaxed);
        let error = match heard {
            Ok(Err(error)) if !is_answer(&error) => error,
            Ok(answer) => return answer,
            Err(_) => kube::Error::Service(format!("no answer within {} s", patience.as_secs_f32()).into()),
        };
        match older {
            Some(older) => {
                tracing::info!(error = chain(&error), "the API server gives no answer: its last one serves");
                Ok(older)
            }
            None => Err(error),
        }
    }
}

fn is_answer(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found() || status.is_forbidden())
}

/// Asks for what this node may have because of a pod. The authorizer hears that the pod is here by a watch of its own, and may hear it
/// later than we: for a moment, no is no answer.
pub(super) async fn allowed<T, F>(ask: impl Fn() -> F) -> kube::Result<T>
where
    F: Future<Output = kube::Result<T>>,
{
    for pause in [100, 200, 400, 800, 1500].map(Duration::from_millis) {
        match ask().await {
            Err(kube::Error::Api(status)) if status.is_forbidden() => tokio::time::sleep(pause).await,
            answer => return answer,
        }
    }
    ask().await
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::pending};

    use tokio::time::Instant;

    use super::*;

    fn status<T>(code: u16, reason: &str) -> kube::Result<T> {
        Err(kube::Error::Api(kube::core::Status::failure(reason, reason).with_code(code).boxed()))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_allowed_yet_is_asked_for_again_and_what_never_is_is_told() {
        let asked = Cell::new(0);
        let ask = |yes_from: u32| {
            asked.set(asked.get() + 1);
            std::future::ready(if asked.get() < yes_from {
                status(403, "Forbidden")
            } else {
                Ok(asked.get())
            })
        };
        assert_eq!(allowed(|| ask(3)).await.unwrap(), 3);
        asked.set(0);
        let refused = allowed(|| ask(u32::MAX)).await.unwrap_err();
        assert_eq!(chain(&refused), "Forbidden");
        assert_eq!(asked.get(), 6);
    }

    #[tokio::test]
    async fn an_older_answer_serves_where_there_is_none_and_only_there() {
        let asking = Asking::default();
        let ask = |answer: kube::Result<&'static str>| asking.ask(Some("old"), std::future::ready(answer));
        assert_eq!(ask(Ok("new")).await.unwrap(), "new");
        for (code, reason) in [(500, "InternalError"), (503, "ServiceUnavailable"), (429, "TooManyRequests")]
        {
            assert_eq!(ask(status(code, reason)).await.unwrap(), "old");
            assert!(asking.ask(None, std::future::ready(status::<()>(code, reason))).await.is_err());
        }
        assert_eq!(ask(Err(kube::Error::Service("connection refused".into()))).await.unwrap(), "old");
        for (code, reason) in [(404, "NotFound"), (403, "Forbidden")] {
            assert!(ask(status(code, reason)).await.is_err(), "{reason}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_answers_is_not_waited_for_long() {
        let asking = Asking::default();
        let took = async |older: Option<&str>| {
            let began = Instant::now();
            let answer = asking.ask(older, pending()).await;
            assert_eq!(answer.ok(), older);
            began.elapsed().as_secs()
        };
        assert_eq!(took(Some("old")).await, 10);
        assert_eq!(took(Some("old")).await, 1);
        assert_eq!(took(None).await, 30);
        // It is heard again.
        asking.ask(None, async { Ok("new") }).await.unwrap();
        assert_eq!(took(Some("old")).await, 10);
    }
}
