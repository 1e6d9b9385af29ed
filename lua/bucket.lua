-- Token buckets, one per key: each fills at a rate up to a burst, and what is taken
-- from it is there or not. Exact, in integers.
--
-- bucket.new{ rate =, burst =[, per =][, keys =] }
--                         buckets that gain `rate` tokens in `per` seconds (by default
--                         1) and hold at most `burst`; each begins full. At most `keys`
--                         (by default 1,024, at most 65,536) are kept at once. All are
--                         integers from 1, rate, burst and per up to 1,000,000,000, and
--                         so is the product of burst and per. Raises an error otherwise.
-- b:take(key, now[, cost])  takes `cost` tokens (by default 1) from the key's bucket, at
--                         a time in nanoseconds, as of linux.time(). Returns true; or
--                         false and how many nanoseconds later they will be there (nil
--                         if cost exceeds the burst), with nothing taken. A key is any
--                         string or integer. Raises an error for a negative cost.
-- b:level(key, now)       whole tokens in the key's bucket
-- #b                      number of keys kept, at most `keys`
--
-- A clock that steps back gives no tokens and takes none; one that steps forward gives
-- at most a burst. A key beyond the bound takes the place of a bucket that is full
-- again, which changes nothing; if there is none among the next 8, that of the fullest
-- of them, whose key begins anew when it returns. A key takes about 70 bytes, and 75
-- more if it is an IPv6 address.
local bucket = {}
local methods = {}
local buckets = { __index = methods, __name = "bucket" }

local SECOND <const>, LARGEST <const> = 1000000000, 1000000000
local DEFAULT_KEYS <const>, MOST_KEYS <const>, LOOKED_AT <const> = 1024, 65536, 8

local function checked(options, name, default, largest)
  local value = options[name]
  if value == nil then value = default end
  if math.type(value) ~= "integer" or value < 1 or value > largest then
    error(("%s is an integer from 1 to %d"):format(name, largest), 3)
  end
  return value
end

-- A credit counts in tokens' parts, of which one token has `unit`: so many that each
-- nanosecond adds exactly `rate`.
function bucket.new(options)
  local rate, burst = checked(options, "rate", nil, LARGEST), checked(options, "burst", nil, LARGEST)
  local per = checked(options, "per", 1, LARGEST)
  local keys = checked(options, "keys", DEFAULT_KEYS, MOST_KEYS)
  if burst * per > LARGEST then
    error(("burst times per is at most %d"):format(LARGEST), 2)
  end
  local unit = per * SECOND
  return setmetatable({
    rate = rate, unit = unit, full = burst * unit,
    fills_in = burst * unit // rate + 1, -- ns, from empty
    keys = keys, used = 0, hand = 0,
    slots = {}, key = {}, credit = {}, last = {},
  }, buckets)
end

function buckets:__len() return self.used end

-- What a slot holds at a time. No product here exceeds twice a full bucket.
local function credit_at(self, slot, now)
  local elapsed = now - self.last[slot]
  if elapsed <= 0 then return self.credit[slot] end
  if elapsed >= self.fills_in then return self.full end
  return math.min(self.full, self.credit[slot] + elapsed * self.rate)
end

-- Returns the slot whose bucket is to go.
local function victim(self, now)
  local best, most = nil, -1
  for _ = 1, math.min(LOOKED_AT, self.keys) do
    self.hand = self.hand % self.keys + 1
    local credit = credit_at(self, self.hand, now)
    if credit == self.full then return self.hand end
    if credit > most then best, most = self.hand, credit end
  end
  return best
end

local function add(self, key, now)
  local slot
  if self.used < self.keys then
    slot = self.used + 1
    self.used = slot
  else
    slot = victim(self, now)
    self.slots[self.key[slot]] = nil
  end
  self.slots[key], self.key[slot] = slot, key
  self.credit[slot], self.last[slot] = self.full, now
  return slot
end

function methods:take(key, now, cost)
  cost = cost or 1
  if cost < 0 then error("a cost is not negative", 2) end
  local slot = self.slots[key] or add(self, key, now)
  local credit = credit_at(self, slot, now)
  self.credit[slot], self.last[slot] = credit, now
  if cost > self.full // self.unit then return false end
  local missing = cost * self.unit - credit
  if missing > 0 then return false, (missing + self.rate - 1) // self.rate end
  self.credit[slot] = -missing
  return true
end

function methods:level(key, now)
  local slot = self.slots[key]
  return (slot and credit_at(self, slot, now) or self.full) // self.unit
end

return bucket
