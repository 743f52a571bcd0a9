//! An error with all its causes as one line, for logs and for people.

use std::error::Error;

/// The error and its causes, each said once: libraries tend to repeat the cause in their own message.
pub fn one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.ends_with(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Layer {
        #[error("can't register")]
        Top(#[source] Box<Layer>),
        #[error("transport error: {0}")]
        Repeating(#[source] std::io::Error),
    }

    #[test]
    fn no_cause_is_said_twice() {
        let refused = std::io::Error::other("connection refused");
        let error = Layer::Top(Box::new(Layer::Repeating(refused)));
        assert_eq!(one_line(&error), "can't register: transport error: connection refused");
    }
}
