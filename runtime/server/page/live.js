// The microphone's samples go to the server as they come; events of the Realtime protocol bring the text.
const find = (name) => element.querySelector(`.sr-live-${name}`);
const BATCH = 2048; // samples of a message
const WORKLET = `registerProcessor("tap", class extends AudioWorkletProcessor {
  constructor() { super(); this.batch = new Int16Array(${BATCH}); this.filled = 0; }
  process([[channel]]) {
    for (const sample of channel ?? []) {
      this.batch[this.filled++] = Math.max(-1, Math.min(1, sample)) * 32767;
      if (this.filled === ${BATCH}) { this.port.postMessage(this.batch.slice()); this.filled = 0; }
    }
    return true;
  }
});`;
let session = null; // what is open while somebody speaks

function show(state, speaking) {
  find("state").textContent = state;
  find("button").textContent = speaking ? "Stop" : "Speak";
  find("button").classList.toggle("sr-on", speaking);
}

function fail(message) {
  find("problem").textContent = message;
  find("problem").hidden = !message;
}

function base64(samples) {
  const bytes = new Uint8Array(samples.buffer);
  let text = "";
  for (let at = 0; at < bytes.length; at += 4096) text += String.fromCharCode(...bytes.subarray(at, at + 4096));
  return btoa(text);
}

async function listen() {
  if (!navigator.mediaDevices) throw new Error("Browsers give the microphone to pages over https and of localhost alone.");
  const stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
  const context = new AudioContext();
  const code = URL.createObjectURL(new Blob([WORKLET], { type: "text/javascript" }));
  await context.audioWorklet.addModule(code);
  URL.revokeObjectURL(code);
  const tap = new AudioWorkletNode(context, "tap", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
  context.createMediaStreamSource(stream).connect(tap);
  return { context, tap, close: () => { stream.getTracks().forEach((track) => track.stop()); context.close(); } };
}

function hear(told) {
  const kind = told.type.replace("conversation.item.input_audio_transcription.", "");
  if (kind === "delta") {
    find("stable").textContent += told.delta;
    find("tail").textContent = "";
  } else if (kind === "partial") {
    find("tail").textContent = told.text;
    find("total").textContent = `${(told.audio_end_ms / 1000).toFixed(1)} s heard`;
  } else if (kind === "completed") {
    find("tail").textContent = "";
    if (told.transcript) find("stable").textContent += "\n";
  } else if (kind === "failed" || kind === "error") {
    if (told.error.code !== "input_audio_buffer_commit_empty") fail(told.error.message);
  } else if (kind === "session.updated" && session?.ending) {
    session.socket.close(); // all that was asked for before has been answered
  }
}

async function start() {
  fail("");
  find("stable").textContent = find("tail").textContent = find("total").textContent = "";
  const microphone = await listen();
  const address = new URL("page/live", location.href.replace(/\/page.*$/, "/"));
  address.protocol = address.protocol.replace("http", "ws");
  address.search = `rate=${microphone.context.sampleRate}`;
  const socket = new WebSocket(address);
  const send = (event) => socket.readyState === WebSocket.OPEN && socket.send(JSON.stringify(event));
  session = { socket, microphone, send, ending: false };
  socket.onmessage = ({ data }) => hear(JSON.parse(data));
  socket.onopen = () => {
    const prompt = find("prompt").value.trim();
    if (prompt) send({ type: "session.update", session: { type: "transcription", audio: { input: { transcription: { prompt } } } } });
    microphone.tap.port.onmessage = ({ data }) => send({ type: "input_audio_buffer.append", audio: base64(data) });
    show("Listening.", true);
  };
  socket.onclose = ({ wasClean }) => {
    microphone.close();
    if (!wasClean) fail("The connection broke off: try again.");
    session = null;
    show("Speak again when you like.", false);
  };
}

function stop() {
  if (session.ending) return;
  session.ending = true;
  session.microphone.close();
  session.send({ type: "input_audio_buffer.commit" });
  session.send({ type: "session.update", session: { type: "transcription" } });
  show("The last words come ...", false);
}

find("button").addEventListener("click", async () => {
  if (session) return stop();
  find("button").disabled = true;
  try {
    await start();
  } catch (error) {
    fail(error.name === "NotAllowedError" ? "The browser was not allowed to use the microphone." : error.message);
  } finally {
    find("button").disabled = false;
  }
});
