-- A staged change of a file was made, or was not. ARGV: expires_at, number, 'keep' | 'drop'. Doing it twice does it once.
-- A file that is put again, with nothing in between, takes the place of what was put before.
local number = tonumber(ARGV[2])
local file, last = FILE .. number, FILE .. (number - 1)
local function bytes_of(change) return redis.call('HSTRLEN', change, 'path') + redis.call('HSTRLEN', change, 'data') end
local function kind_path_before(change) return unpack(redis.call('HMGET', change, 'kind', 'path', 'before')) end

if tonumber(redis.call('HGET', SESSION, 'files') or 0) ~= number or redis.call('EXISTS', file) == 0 then return 'ok' end
if ARGV[3] == 'drop' then
  redis.call('DEL', file)
  return 'ok'
end
redis.call('HINCRBY', SESSION, 'bytes', bytes_of(file))
local kind, path, before = kind_path_before(file)
local last_kind, last_path, last_before = kind_path_before(last)
if kind == 'put' and last_kind == 'put' and path == last_path and before == last_before then
  redis.call('HINCRBY', SESSION, 'bytes', -bytes_of(last))
  redis.call('RENAME', file, last)
else
  redis.call('HSET', SESSION, 'files', number + 1)
end
touch(ARGV[1])
return 'ok'
