-- Put before every script on a session. KEYS and the first three arguments are the same for all (store/ explains them).
-- Fencing: a server whose lease has ended is refused here, and one that asks about a session which it does not own, or
-- owned at an earlier epoch. EPOCH '' is for the scripts that make or take a session.

local LEASE, SESSIONS, LISTING, TOMBSTONE, SESSION, IDS, PENDING, RUNS, CELL, FILE, QUEUED = unpack(KEYS)
local INSTANCE = table.remove(ARGV, 1)
local EPOCH = table.remove(ARGV, 1)
local REF = table.remove(ARGV, 1)

if redis.call('EXISTS', LEASE) == 0 then return redis.error_reply('FENCED the lease of this server has ended') end
if EPOCH ~= '' then
  if redis.call('EXISTS', SESSION) == 0 then return {'missing'} end
  local owner, epoch = unpack(redis.call('HMGET', SESSION, 'owner', 'epoch'))
  if owner ~= INSTANCE or epoch ~= EPOCH then return {'moved'} end
end

local function touch(expires_at)
  redis.call('HSET', SESSION, 'expires_at', expires_at)
  redis.call('ZADD', SESSIONS, 'XX', expires_at, REF)
end

-- For whoever has the session's turn. A cell still marked as running in this epoch then never reached its kernel: the reply
-- of the script that started it was lost on the way. It is pending again, and its run never was.
local function release_orphan()
  local orphan = redis.call('HGET', SESSION, 'running')
  if not orphan then return end
  local cell = CELL .. orphan
  local status, epoch, run_id = unpack(redis.call('HMGET', cell, 'status', 'epoch', 'run_id'))
  if status == 'running' and epoch == EPOCH then
    redis.call('HSET', cell, 'status', 'pending')
    redis.call('HDEL', cell, 'run_id', 'generation', 'epoch', 'provisional')
    redis.call('ZADD', PENDING, orphan, orphan)
    redis.call('HDEL', RUNS, run_id)
  end
  redis.call('HDEL', SESSION, 'running')
end

-- Append the cells at ARGV[first], ARGV[first + 1] (cell_id, code), ... to the log: all of them, or none.
-- A cell that is there already with the same code is found, not appended. Returns their indices, or nil and why not.
local function accept(first, max_pending, max_bytes)
  local indices, bytes, new = {}, 0, {}
  local total = tonumber(redis.call('HGET', SESSION, 'cells'))
  for i = first, #ARGV, 2 do
    local index = redis.call('HGET', IDS, ARGV[i])
    if not index then
      new[#new + 1] = i
      bytes = bytes + #ARGV[i + 1]
      index = total + #new - 1
    elseif redis.call('HGET', CELL .. index, 'code') ~= ARGV[i + 1] then
      return nil, 'mismatch'
    end
    indices[#indices + 1] = tonumber(index)
  end
  if #new > 0 and redis.call('ZCARD', PENDING) + #new > max_pending then return nil, 'too_many_pending' end
  if #new > 0 and redis.call('HINCRBY', SESSION, 'bytes', 0) + bytes > max_bytes then return nil, 'log_full' end
  for offset, i in ipairs(new) do
    local index = total + offset - 1
    redis.call('HSET', CELL .. index, 'cell_id', ARGV[i], 'code', ARGV[i + 1], 'status', 'pending')
    redis.call('HSET', IDS, ARGV[i], index)
    redis.call('ZADD', PENDING, index, index)
  end
  redis.call('HINCRBY', SESSION, 'cells', #new)
  redis.call('HINCRBY', SESSION, 'bytes', bytes)
  return indices
end

-- Mark the first pending cell up to index `bound` as started, and append it to `reply`.
-- The cells of an atomic run are provisional until the run has ended well.
local function start_next(reply, bound, run_id, generation, atomic)
  local index = redis.call('ZRANGEBYSCORE', PENDING, '-inf', bound, 'LIMIT', 0, 1)[1]
  if not index then
    redis.call('HDEL', SESSION, 'running')
    return reply
  end
  local cell = CELL .. index
  redis.call('ZREM', PENDING, index)
  redis.call('HSET', cell, 'status', 'running', 'run_id', run_id, 'generation', generation, 'epoch', EPOCH)
  if atomic then redis.call('HSET', cell, 'provisional', 1) end
  redis.call('HSET', SESSION, 'running', index)
  reply[#reply + 1] = tonumber(index)
  reply[#reply + 1] = redis.call('HGET', cell, 'cell_id')
  reply[#reply + 1] = redis.call('HGET', cell, 'code')
  return reply
end
