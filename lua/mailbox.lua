-- Messages between runtimes: strings of any bytes, queued in a fifo; a completion wakes
-- who waits for them. Each message reaches one receiver. Whoever has an inbox hands its
-- queue and event to others, who make an outbox of them:
--
--   local inbox = mailbox.inbox(4096)
--   worker:resume(inbox.queue, inbox.event)
--   local message, why = inbox:receive(1000)
local completion = require "completion"
local fifo = require "fifo"

local mailbox = {}

-- The fifo and the completion given, or a new fifo of so many bytes and a completion.
local function box(class, queue, event)
  if math.type(queue) == "integer" then
    queue = fifo.new(queue)
  end
  return setmetatable({ queue = queue, event = event or completion.new() }, class)
end

local Inbox = {}
Inbox.__index = Inbox

--- Wait for the next message, at most ms milliseconds; only in a sleepable runtime.
-- Returns the message, or nil and "timeout" or "interrupt".
function Inbox:receive(ms)
  local message
  repeat
    local done, why = self.event:wait(ms)
    if not done then
      return nil, why
    end
    message = self.queue:receive()
  until message
  return message
end

local Outbox = {}
Outbox.__index = Outbox

--- Queue a message, in any runtime; raises where the fifo has no room for it.
function Outbox:send(message)
  self.queue:send(message)
  self.event:complete()
end

--- An inbox: of a new fifo of n bytes, or of a fifo and a completion.
function mailbox.inbox(queue, event)
  return box(Inbox, queue, event)
end

--- An outbox, as mailbox.inbox.
function mailbox.outbox(queue, event)
  return box(Outbox, queue, event)
end

return mailbox
