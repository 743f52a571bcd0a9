//! Watches that go on for as long as somebody listens. The client library lists anew when the API server says within a watch that the version it
//! began at is gone (410), but not when it is told so instead of a watch: it would ask for the same version for ever.

use std::fmt::Debug;

use futures::{Stream, StreamExt as _, stream};
use http::StatusCode;
use kube::{
    Api, Resource,
    runtime::watcher::{self, Config, Event, watcher},
};
use serde::de::DeserializeOwned;

/// [`watcher`], which begins from a list where it can't go on. The caller adds the wait after errors.
pub(crate) fn watch<T>(
    api: Api<T>,
    config: Config,
) -> impl Stream<Item = Result<Event<T>, watcher::Error>> + Send
where
    T: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    stream::unfold((api, config, None), async |(api, config, current)| {
        let mut current = current.unwrap_or_else(|| watcher(api.clone(), config.clone()).boxed());
        let event = current.next().await?;
        let is_over = matches!(&event, Err(watcher::Error::WatchStartFailed(kube::Error::Api(status)))
            if status.code == StatusCode::GONE.as_u16());
        Some((event, (api, config, (!is_over).then_some(current))))
    })
}
