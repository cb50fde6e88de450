// E2B's JavaScript SDK: what its examples do, then errors, time-outs, much output, images, contexts, pause, fork.
import assert from 'node:assert/strict'

const [url, token] = process.argv.slice(2)
Object.assign(process.env, { E2B_API_URL: url, E2B_SANDBOX_URL: url, E2B_API_KEY: token })
const { Sandbox } = await import('@e2b/code-interpreter')

const sandbox = await Sandbox.create({ metadata: { k: 'js v' }, envs: { A: 'a' }, timeoutMs: 300_000 })
assert(await sandbox.isRunning())

await sandbox.runCode('x = 1')
assert.equal((await sandbox.runCode('x += 1; x')).text, '2')
const heard = []
let execution = await sandbox.runCode("import sys, os\nprint('hello')\nprint('oops', file=sys.stderr)\nos.environ['A'] + os.environ['B']", {
  envs: { B: "it's" },
  onStdout: (message) => heard.push(message.line),
  onStderr: (message) => heard.push(message.line),
  onResult: (result) => heard.push(result.text),
})
assert.deepEqual(execution.logs, { stdout: ['hello\n'], stderr: ['oops\n'] })
assert.deepEqual(heard, ['hello\n', 'oops\n', "ait's"])

execution = await sandbox.runCode('1 / 0')
assert.equal(execution.error.name, 'ZeroDivisionError')
assert((await sandbox.runCode('import os; os._exit(1)')).error.name === 'KernelDied')
assert.equal((await sandbox.runCode('x')).text, '2')

await assert.rejects(sandbox.runCode('while True: pass', { timeoutMs: 1000 }), { name: 'TimeoutError' })
assert.equal((await sandbox.runCode('x')).text, '2')
await assert.rejects(sandbox.runCode('1', { language: 'cobol' }), /cobol/)

execution = await sandbox.runCode('for i in range(20000): print(i)')
assert.equal(execution.logs.stdout.join('').split('\n').length, 20001)
execution = await sandbox.runCode("import pandas as pd; pd.DataFrame({'a': [1, 2], 'b': ['x', None]})")
assert.deepEqual(execution.results[0].data, { a: [1, 2], b: ['x', null] })
execution = await sandbox.runCode("import matplotlib.pyplot as plt; plt.errorbar([1, 2], [3, 4], yerr=[0.1, 0.2]); plt.show()")
assert.equal(execution.results[0].chart.type, 'line')
assert.deepEqual(execution.results[0].chart.elements[0].y_errors, [[0.1, 0.1], [0.2, 0.2]])
for (const [kind, code] of Object.entries({
  scatter: 'plt.scatter([1], [2])',
  bar: "plt.bar(['p'], [1])",
  pie: 'plt.pie([1, 3])',
  box_and_whisker: 'plt.boxplot([[1, 2, 3]])',
  superchart: '[ax.plot([1, 2]) for ax in plt.subplots(1, 2)[1]]',
})) {
  const drawn = await sandbox.runCode(`import matplotlib.pyplot as plt; _ = ${code}; plt.show()`)
  assert.equal(drawn.results[0].chart.type, kind)
  assert.ok(drawn.results[0].chart.elements.length > 0)
}
const scaled = await sandbox.runCode('import datetime; plt.plot([datetime.date(2026, 1, 1)], [1]); plt.yscale("log"); plt.show()')
assert.deepEqual([scaled.results[0].chart.x_scale, scaled.results[0].chart.y_scale], ['datetime', 'log'])
assert(execution.results[0].png.startsWith('iVBOR'))

const context = await sandbox.createCodeContext({ cwd: '/tmp' })
assert.equal((await sandbox.runCode("import os; os.getcwd()", { context })).text, '/tmp')
assert.equal((await sandbox.listCodeContexts()).length, 2)
await sandbox.restartCodeContext(context)
await sandbox.removeCodeContext(context)
assert.equal((await sandbox.listCodeContexts()).length, 1)

const paginator = Sandbox.list({ query: { metadata: { k: 'js v' } }, limit: 1 })
assert.deepEqual((await paginator.nextItems()).map((each) => each.sandboxId), [sandbox.sandboxId])
const before = (await sandbox.getInfo()).endAt
await sandbox.setTimeout(600_000)
assert((await sandbox.getInfo()).endAt - before > 100_000)
assert((await sandbox.getMetrics())[0].memTotal > 0)

await sandbox.pause()
assert.equal(await sandbox.isRunning(), false)
assert.equal((await sandbox.getInfo()).state, 'paused')
const again = await Sandbox.connect(sandbox.sandboxId)
assert.equal((await again.runCode('x')).text, '2')
const [fork] = await sandbox.fork({ count: 1 })
assert.equal((await fork.runCode('x += 1; x')).text, '3')
assert.equal((await sandbox.runCode('x')).text, '2')
const snapshot = await sandbox.createSnapshot({ name: 'js' })
const copy = await Sandbox.create(snapshot.snapshotId)
assert.equal((await copy.runCode('x')).text, '2')
assert(await Sandbox.deleteSnapshot(snapshot.snapshotId))

for (const each of [fork, copy, sandbox]) assert(await each.kill())
assert.equal(await sandbox.isRunning(), false)
await assert.rejects(sandbox.runCode('1'), { name: 'TimeoutError' })
await assert.rejects(Sandbox.create({ apiKey: 'wrong' }), { name: 'AuthenticationError' })
console.log('ok')
process.exit(0) // the SDK does not clear a timer of 60 s when an answer is an error
