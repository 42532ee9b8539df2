// A message handler in JavaScript. Returning takes the message off; what is thrown says what to do with it otherwise.

export const handler = {
  handle(message) {
    const order = parsed(message.body);
    if (order.test) throw { tag: "drop", val: "a test" };
    if (order.waitsFor > message.attempt) {
      throw { tag: "retry", val: { reason: "not in stock yet", afterMs: 200n } };
    }
    console.log(`order ${order.number} from ${message.subject}, attempt ${message.attempt}`);
  },
};

// What is no JSON now will be none at the next attempt: someone should see it.
function parsed(body) {
  try {
    return JSON.parse(new TextDecoder().decode(body));
  } catch (why) {
    throw { tag: "dead-letter", val: `the body is no JSON: ${why.message}` };
  }
}
