//! Messages as the fields of a stream's entry, which other clients of Redis write and read too.
//!
//! `body` holds the body, `message-id` and `reply-to` what they say, and every other field is a header. An entry of
//! another program that has no `body` and only one field has its body there. What is no UTF-8 in a header is replaced by
//! `U+FFFD` for the component; the entry, and a dead letter made of it, keep the bytes.

use trellis_wire::Message;

/// How a dead letter's own fields begin.
pub(crate) const DEAD: &str = "Trellis-Dead-";
const BODY: &str = "body";
const ID: &str = "message-id";
const REPLY_TO: &str = "reply-to";

/// Names and values in turn, as Redis has them.
pub(crate) type Fields = Vec<Vec<u8>>;

/// The fields of a message that is published.
pub(crate) fn write(message: &Message) -> Fields {
    let mut fields: Fields = vec![BODY.into(), message.body.to_vec()];
    let mut add = |name: &str, value: &str| fields.extend([name.into(), value.into()]);
    if !message.id.is_empty() {
        add(ID, &message.id);
    }
    if let Some(reply_to) = &message.reply_to {
        add(REPLY_TO, reply_to);
    }
    for (name, value) in &message.headers {
        add(name, value);
    }
    fields
}

/// The message of an entry. Its `id` is empty where nobody gave it one.
pub(crate) fn read(subject: &str, fields: &Fields) -> Message {
    let mut message = Message { subject: subject.into(), ..Message::default() };
    let only = fields.len() == 2;
    for pair in fields.chunks_exact(2) {
        let (name, value) = (text(&pair[0]), &pair[1]);
        match name.as_str() {
            BODY => message.body = value.clone().into(),
            ID => message.id = text(value),
            REPLY_TO => message.reply_to = Some(text(value)),
            _ if only => message.body = value.clone().into(),
            _ if name.starts_with(DEAD) => {}
            _ => message.headers.push((name, text(value))),
        }
    }
    message
}

/// The values of a dead letter's field of this name.
pub(crate) fn dead<'a>(fields: &'a Fields, name: &'a str) -> impl Iterator<Item = String> + 'a {
    let is = move |field: &[u8]| field.strip_prefix(DEAD.as_bytes()) == Some(name.as_bytes());
    fields.chunks_exact(2).filter(move |pair| is(&pair[0])).map(|pair| text(&pair[1]))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_the_same_after_its_way_through_a_stream() {
        let message = Message {
            subject: "orders".into(),
            body: vec![0, 255].into(),
            reply_to: Some("answers".into()),
            headers: vec![("a".into(), "1".into()), ("a".into(), "2".into())],
            id: "7".into(),
            ..Message::default()
        };
        assert_eq!(read("orders", &write(&message)), message);
    }

    #[test]
    fn entries_of_other_programs_are_taken() {
        let entry = |fields: &[&[u8]]| read("orders", &fields.iter().map(|field| field.to_vec()).collect());
        assert_eq!(entry(&[b"data", b"{}"]).body, "{}");
        let several = entry(&[b"a", b"\xff", b"b", b"2"]);
        assert!(several.body.is_empty());
        assert_eq!(several.headers, [("a".into(), "\u{fffd}".into()), ("b".into(), "2".into())]);
    }
}
