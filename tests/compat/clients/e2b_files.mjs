// E2B's JavaScript SDK, unmodified: files and commands of a sandbox. Arguments: address, token. Says "ok".
import assert from 'node:assert/strict'
import { FilesystemEventType, NotFoundError, Sandbox } from 'e2b'

const [address, token] = process.argv.slice(2)
Object.assign(process.env, { E2B_API_KEY: token, E2B_API_URL: address, E2B_SANDBOX_URL: address })

const box = await Sandbox.create()

// up and down
const written = await box.files.write('deep/hello.txt', 'hello')
assert.equal(written.path, '/home/user/deep/hello.txt')
assert.equal(await box.files.read('/home/user/deep/hello.txt'), 'hello')
const told = await box.files.write('told.txt', 'x', { metadata: { author: 'me' } })
assert.deepEqual([told.metadata, (await box.files.getInfo('told.txt')).metadata], [{ author: 'me' }, { author: 'me' }])
await box.files.write([{ path: 'a.txt', data: 'a' }, { path: 'b.txt', data: new Blob(['b']) }])
assert.equal(await box.files.read('b.txt'), 'b')
const bytes = new Uint8Array(2_000_000).map((_, n) => (n * 7) % 251)
await box.files.write('big.bin', bytes.buffer)
assert.deepEqual(await box.files.read('big.bin', { format: 'bytes' }), bytes)
await assert.rejects(box.files.read('missing.txt'), NotFoundError)

// the tree
assert.equal(await box.files.makeDir('d/e'), true)
assert.equal(await box.files.makeDir('d/e'), false)
await box.files.rename('a.txt', 'd/a.txt')
assert.deepEqual((await box.files.list('d')).map((entry) => [entry.name, entry.type]), [['a.txt', 'file'], ['e', 'dir']])
assert.equal((await box.files.getInfo('d/a.txt')).size, 1)
await box.files.remove('d')
assert.equal(await box.files.exists('d'), false)

// watching
await box.files.makeDir('w')
let seen
const wrote = new Promise((resolve) => { seen = resolve })
const watch = await box.files.watchDir('w', (event) => {
  if (event.type === FilesystemEventType.WRITE) seen(event.name)
})
await box.files.write('w/f.txt', 'x')
assert.equal(await wrote, 'f.txt')
await watch.stop()

// signed addresses
const url = await box.downloadUrl('deep/hello.txt', { useSignatureExpiration: 60 })
assert.equal(await (await fetch(url)).text(), 'hello')

// commands see the same files
assert.equal((await box.commands.run('cat deep/hello.txt')).stdout, 'hello')

await box.kill()
console.log('ok')
process.exit(0)
