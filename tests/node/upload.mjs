// Uploads a file with the unmodified reference client, to a transfer URL that exists already.
// usage: node upload.mjs <url> <file> <key> <chunk size, 0 for none>
import { createReadStream, statSync } from 'node:fs'
import * as tus from 'tus-js-client'

const [url, file, key, chunkSize] = process.argv.slice(2)
const upload = new tus.Upload(createReadStream(file), {
  uploadUrl: url,
  uploadSize: statSync(file).size,
  chunkSize: Number(chunkSize) || Infinity,
  headers: { Authorization: `Bearer ${key}` },
  retryDelays: [10, 20, 30],
  onError: (error) => {
    console.error(error.message)
    process.exit(1)
  },
  onSuccess: () => process.exit(0),
})
upload.start()
