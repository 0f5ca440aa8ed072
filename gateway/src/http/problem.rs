//! Error answers (RFC 9457), and which paths get them.

use serde_json::{Value, json};

use super::Reply;

/// The media type of errors (RFC 9457 6.1).
pub(super) const TYPE: &str = "application/problem+json";

/// Whether a path is one of the JSON interfaces. A label before the well-known part of EST may be
/// any word, so that one decides.
pub(super) fn is_json(path: &str) -> bool {
    path.starts_with("/v1/") && !path.contains("/.well-known/")
}

/// An error answer; `code` is a word with underscores.
pub(super) fn problem(status: u16, code: &str, detail: &str) -> Reply {
    let title = code.strip_prefix("hook_").unwrap_or(code).replace('_', " ");
    let problem = json!({
        "type": format!("urn:runnel:problem:{code}"),
        "title": title,
        "status": status,
        "detail": detail,
    });
    Reply::new(status, TYPE, problem.to_string().into_bytes())
}

/// The same answer with the request's id beside what it says (RFC 9457 3.2): whoever keeps only the
/// body finds it in the log and in the audit trail. Other answers have it in a header field.
pub(super) fn named(mut reply: Reply, id: &str) -> Reply {
    let is_problem = |(name, value): &(&str, String)| *name == "content-type" && value == TYPE;
    if reply.headers.iter().any(is_problem)
        && let Ok(Value::Object(mut problem)) = serde_json::from_slice(&reply.body)
    {
        problem.insert("request_id".to_owned(), id.into());
        reply.body = Value::Object(problem).to_string().into_bytes().into();
    }
    reply
}

/// What the listener itself answers to a request that cannot be read; text where nobody speaks
/// JSON.
pub(super) fn unread(path: &str, status: u16, code: &str, detail: &str) -> Reply {
    match is_json(path) {
        true => problem(status, code, detail),
        false => Reply::text(status, format!("{detail}\n")),
    }
}

/// Says which methods a resource has (RFC 9110 15.5.6).
pub(super) fn allowing(mut reply: Reply, methods: &str) -> Reply {
    reply.headers.push(("allow", methods.to_owned()));
    reply
}
