// Runs Measurement Lab's NDT7 client against a server: client.cjs HOST:PORT. What it measured is printed as JSON.
//
// The client is made for browsers: what it expects of them, workers and WebSockets, is made of what node has.
'use strict';

const path = require('node:path');
const { Worker: Thread, isMainThread, parentPort, workerData } = require('node:worker_threads');

if (isMainThread) {
  main(process.argv[2]);
} else {
  work(workerData);
}

async function main(server) {
  globalThis.Worker = class {
    constructor(file) {
      this.thread = new Thread(__filename, { workerData: file });
      this.thread.on('message', (data) => this.onmessage({ data }));
      this.thread.on('error', (error) => this.onmessage({ data: { MsgType: 'error', Error: String(error) } }));
    }
    postMessage(data) {
      this.thread.postMessage(data);
    }
    terminate() {
      this.thread.terminate();
    }
  };
  const ndt7 = require('@m-lab/ndt7');
  const source = path.dirname(require.resolve('@m-lab/ndt7'));
  const told = { errors: [], measurements: { download: 0, upload: 0 } };
  const code = await ndt7.test(
    {
      server,
      protocol: 'ws',
      mlabDataPolicyInapplicable: true,
      metadata: { client_name: 'public-client', client_version: '7' },
      downloadworkerfile: path.join(source, 'ndt7-download-worker.js'),
      uploadworkerfile: path.join(source, 'ndt7-upload-worker.js'),
    },
    {
      error: (error) => told.errors.push(String(error)),
      downloadMeasurement: ({ Source }) => (told.measurements.download += Source === 'server'),
      uploadMeasurement: ({ Source }) => (told.measurements.upload += Source === 'server'),
      downloadComplete: (last) => (told.download = last),
      uploadComplete: (last) => (told.upload = last),
    },
  );
  console.log(JSON.stringify({ code, ...told }));
  process.exit(0);
}

function work(file) {
  globalThis.self = globalThis;
  globalThis.WebSocket = require('ws');
  globalThis.postMessage = (message) => parentPort.postMessage(message);
  require(file);
  parentPort.on('message', (data) => globalThis.onmessage({ data }));
}
