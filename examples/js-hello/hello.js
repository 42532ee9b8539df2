// The smallest HTTP component in JavaScript: it greets. Requests and responses are those of the web's fetch API.

addEventListener("fetch", (event) => event.respondWith(greet(event.request)));

function greet(request) {
  const name = new URL(request.url).searchParams.get("name") ?? "world";
  return new Response(`hello ${name}, from JavaScript\n`, {
    headers: { "content-type": "text/plain; charset=utf-8" },
  });
}
