-- Record copies of a session with its log as it is now, all or none; whoever forks has the session's turn.
-- KEYS: those of the session, then those of each copy. ARGV: max_sessions of the tenant, created_at, expires_at, origin,
-- (ref, session_id) of each copy.
-- A copy is at generation 1. What the session's last reset made history is history in the copy too: its generation is 0.
release_orphan()

local PER_SESSION, copies = 11, (#ARGV - 4) / 2
local function keys_of(copy) return unpack(KEYS, copy * PER_SESSION + 1, (copy + 1) * PER_SESSION) end
for copy = 1, copies do
  local _, _, _, tombstone, session = keys_of(copy)
  if redis.call('EXISTS', session, tombstone) > 0 then return 'exists' end
end
if redis.call('ZCARD', LISTING) + copies > tonumber(ARGV[1]) then return 'full' end

local base, cells, files, bytes, config, unrepeatable =
  unpack(redis.call('HMGET', SESSION, 'base', 'cells', 'files', 'bytes', 'config', 'unrepeatable'))
files = files or 0

local function copy_cell(from, to)
  redis.call('COPY', from, to)
  local generation = redis.call('HGET', from, 'generation')
  if generation then redis.call('HSET', to, 'generation', tonumber(generation) < tonumber(base) and 0 or 1) end
end

for copy = 1, copies do
  local _, sessions, listing, _, session, ids, pending, runs, cell, file = keys_of(copy)
  redis.call('HSET', session, 'owner', INSTANCE, 'epoch', 1, 'generation', 1, 'base', 1, 'cells', cells,
    'files', files, 'bytes', bytes, 'created_at', ARGV[2], 'expires_at', ARGV[3], 'config', config, 'origin', ARGV[4])
  if unrepeatable then redis.call('HSET', session, 'unrepeatable', 1) end
  redis.call('COPY', IDS, ids)
  redis.call('COPY', PENDING, pending)
  redis.call('COPY', RUNS, runs)
  for index = 0, cells - 1 do copy_cell(CELL .. index, cell .. index) end
  for number = 0, files - 1 do redis.call('COPY', FILE .. number, file .. number) end
  redis.call('ZADD', sessions, ARGV[3], ARGV[3 + 2 * copy])
  redis.call('ZADD', listing, 0, ARGV[4 + 2 * copy])
end
return 'forked'
